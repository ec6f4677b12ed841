"""What the catalogue has is at Stripe, once, whatever was interrupted."""

from __future__ import annotations

import sqlalchemy as sa
from stripe import StripeClient

from apex_pipelines.platform import catalogue
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.stripe.bootstrap import Bootstrapped, bootstrap, plan_price_name
from apex_pipelines.stripe.links import stripe_ids
from tests.stripe.sandbox import Sandbox

WRITES = ("POST /v1/products", "POST /v1/prices", "POST /v1/billing/meters")


def run(client: StripeClient, engine: sa.Engine, clock: ManualClock) -> list[Bootstrapped]:
    with engine.begin() as connection:
        return bootstrap(client, connection, clock.now(), livemode=False)


def test_products_prices_and_meters_are_as_the_catalogue_says(
    stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    client = stripe_sandbox.client()
    done = run(client, engine, clock)
    assert {step.outcome for step in done} == {"created"}

    prices = {price.lookup_key: price for price in client.v1.prices.list({"limit": 100}).data}
    for plan in catalogue.plans().values():
        price = prices[plan_price_name(plan.plan_type)]
        assert (price.unit_amount, price.currency) == (plan.base_price_cents, plan.currency)
        assert price.recurring is not None
        assert (price.recurring.interval, price.recurring.usage_type) == ("month", "licensed")
    metered = {
        price.recurring.meter: price for price in prices.values() if price.recurring and price.recurring.meter
    }
    meters = {meter.event_name: meter for meter in client.v1.billing.meters.list({"limit": 100}).data}
    usage = [metric for metric in catalogue.metrics().values() if metric.kind == "usage"]
    assert set(meters) == {f"apex_{metric.metric_type}" for metric in usage}
    for meter in meters.values():
        assert meter.default_aggregation.formula == "sum"
        assert metered[meter.id].unit_amount == 0
        assert metered[meter.id].recurring.usage_type == "metered"
    with engine.connect() as connection:
        assert stripe_ids(connection, "billing.meter", livemode=False) == {
            f"meter:{name.removeprefix('apex_')}": meter.id for name, meter in meters.items()
        }


def test_a_second_run_finds_everything_and_writes_nothing(
    stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    client = stripe_sandbox.client()
    first = run(client, engine, clock)
    before = [stripe_sandbox.handled(route) for route in WRITES]
    second = run(client, engine, clock)
    assert {step.outcome for step in second} == {"found"}
    assert [step.stripe_id for step in second] == [step.stripe_id for step in first]
    assert [stripe_sandbox.handled(route) for route in WRITES] == before


def test_lost_answers_on_the_way_leave_nothing_twice(
    stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    # Some answers are lost after the request was handled; Stripe's client tries again with the same key.
    stripe_sandbox.fault(when="after", share=0.15, seed=7)
    run(stripe_sandbox.client(retries=9), engine, clock)
    assert sum(fault["happened"] for fault in stripe_sandbox.faults()) > 5
    stripe_sandbox.no_faults()
    client = stripe_sandbox.client()
    names = [price.lookup_key for price in client.v1.prices.list({"limit": 100}).data]
    events = [meter.event_name for meter in client.v1.billing.meters.list({"limit": 100}).data]
    assert len(names) == len(set(names))
    assert len(events) == len(set(events))


def test_a_price_that_changed_gets_a_successor_and_the_name_moves_to_it(
    stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    client = stripe_sandbox.client()
    name = plan_price_name("indie")
    client.v1.products.create({"id": "apex_indie", "name": "Indie, as it was called"})
    old = client.v1.prices.create(
        {
            "product": "apex_indie",
            "currency": "usd",
            "unit_amount": 7_900,
            "recurring": {"interval": "month"},
            "lookup_key": name,
        }
    )
    outcomes = {step.name: step.outcome for step in run(client, engine, clock)}
    assert outcomes["product:indie"] == outcomes[name] == "changed"
    held = client.v1.prices.list({"lookup_keys": [name]}).data
    assert [price.unit_amount for price in held] == [catalogue.plans()["indie"].base_price_cents]
    assert client.v1.prices.retrieve(old.id).unit_amount == 7_900
