"""The offline Stripe for all tests of this folder."""

from __future__ import annotations

from tests.stripe.sandbox import stripe_sandbox

__all__ = ["stripe_sandbox"]
