"""Reading everything from Stripe: whole, resumed, while it changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apex_pipelines.stripe import backfill as reading
from tests.stripe.reading import START, StripeWorld

HAVE = ("product", "price", "coupon", "billing.meter", "customer", "subscription")
STEP = timedelta(minutes=1)


def seed_customers(world: StripeWorld, count: int) -> None:
    """Customers of which each was created a second after the one before, and a few in the same."""
    at = int(START.timestamp())
    world.sandbox.seed(
        {"object": "customer", "id": f"cus_{n:06}", "created": at - count + n // 3, "name": f"c{n}",
         "email": None, "livemode": False, "metadata": {}}
        for n in range(count)
    )  # fmt: skip


def test_all_that_stripe_has_is_in_the_warehouse_to_the_letter(world: StripeWorld) -> None:
    seed_customers(world, 250)
    product = world.stripe.v1.products.create({"name": "Zoë's “plan”"})
    world.stripe.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 9_900})
    report = world.backfill(*HAVE)
    assert report.objects == {
        "product": 1,
        "price": 1,
        "coupon": 0,
        "billing.meter": 0,
        "customer": 250,
        "subscription": 0,
    }
    for name in HAVE:
        assert world.landed(name) == world.at_stripe(name)
    assert world.backfill(*HAVE).objects == {}
    seed_customers(world, 251)
    assert world.backfill("customer", again=True).objects == {"customer": 251}
