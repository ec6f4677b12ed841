"""The offline Stripe and the worlds around it, for all tests of this folder."""

from __future__ import annotations

from tests.ingest.conftest import new_api, process_environment
from tests.stripe.reading import world
from tests.stripe.sandbox import running_stripe_sandbox, stripe_sandbox
from tests.stripe.usage_world import _usage_sandbox, usage

__all__ = [
    "_usage_sandbox", "new_api", "process_environment", "running_stripe_sandbox", "stripe_sandbox", "usage",
    "world",
]  # fmt: skip
