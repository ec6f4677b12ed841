"""The offline Stripe for all tests of this folder, and what is read from it."""

from __future__ import annotations

from tests.ingest.conftest import new_api, process_environment
from tests.stripe.reading import world
from tests.stripe.sandbox import running_stripe_sandbox, stripe_sandbox

__all__ = ["new_api", "process_environment", "running_stripe_sandbox", "stripe_sandbox", "world"]
