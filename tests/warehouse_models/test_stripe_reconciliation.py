"""The reconciliation with Stripe finds what differs, and names a cause that helps.

Each case is a customer of its own, whose rows stand in the raw tables as the platform would have written
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.landing import land_objects
from apex_pipelines.stripe.links import link, stripe_ids
from apex_pipelines.stripe.reconciliation import Comparison, ask_stripe, comparisons
from apex_pipelines.stripe.usage_sync import UsageSync
from tests.stripe.sandbox import Sandbox, running_stripe_sandbox, stripe_sandbox
from tests.warehouse_models.conftest import Models

__all__ = ["running_stripe_sandbox", "stripe_sandbox"]

STARTED = datetime(2026, 4, 10, 12, tzinfo=UTC)
USED_ON = datetime(2026, 5, 1, tzinfo=UTC)
SETTLED = datetime(2026, 5, 2, 2, tzinfo=UTC)
ENDED = datetime(2026, 5, 10, 12, tzinfo=UTC)
FINALIZED = ENDED + timedelta(hours=1)
NOW = datetime(2026, 6, 1, 2, tzinfo=UTC)
NEVER_READ = datetime(2026, 1, 1, tzinfo=UTC)
ALL_READ = datetime(2099, 1, 1, tzinfo=UTC)


class Sides:
    """What the ledger and Stripe have of one customer's impressions in the period that ended in May."""

    def __init__(self, models: Models, name: str) -> None:
        self.models, self.customer = models, f"cus_{name}"

    def ledger(
        self,
        quantity: int,
        state: str = "sent",
        *,
        settled_at: datetime | None = SETTLED,
        at: datetime = USED_ON,
    ) -> Sides:
        self.models.changes += 1
        columns = {
            "id": self.models.changes, "livemode": False, "customer_id": self.customer,
            "stripe_customer_id": f"cus_at_{self.customer}", "subscription_id": f"sub_{self.customer}",
            "metric_type": "impressions", "period_start": STARTED, "slot_start": at,
            "number": self.models.changes, "quantity": quantity, "identifier": str(self.models.changes),
            "state": state, "created_at": SETTLED, "settled_at": settled_at, "snapshot_at": NOW,
        }  # fmt: skip
        self._insert("stripe_meter_ledger", columns)
        return self

    def meter(self, quantity: int, *, counted_until: datetime = ALL_READ) -> Sides:
        columns = {
            "livemode": False, "customer_id": self.customer, "metric_type": "impressions",
            "period_start": STARTED, "window_start": STARTED, "window_end": ENDED, "quantity": quantity,
            "counted_until": counted_until, "synced_at": NOW, "fetched_at": NOW,
        }  # fmt: skip
        self._insert("stripe_meter_summaries", columns)
        return self

    def invoice(self, quantity: int | None, status: str = "paid") -> Sides:
        """At Stripe there is a subscription, and an invoice with this quantity (without one: no line)."""
        customer, subscription = f"cus_at_{self.customer}", f"sub_at_{self.customer}"
        line = {
            "id": f"il_{self.customer}", "object": "line_item", "amount": 0, "currency": "usd",
            "quantity": quantity, "period": {"start": _seconds(STARTED), "end": _seconds(ENDED)},
            "pricing": {"price_details": {"price": "price_i"}}, "subscription": subscription,
        }  # fmt: skip
        self.land(
            {"id": customer, "object": "customer", "metadata": {"customer_id": self.customer}},
            {"id": subscription, "object": "subscription", "customer": customer, "status": "active",
             "start_date": _seconds(STARTED), "items": {"object": "list", "data": [], "has_more": False}},
            {"id": f"in_{self.customer}", "object": "invoice", "customer": customer, "status": status,
             "currency": "usd", "total": 0, "amount_paid": 0,
             "status_transitions": {"finalized_at": _seconds(FINALIZED)},
             "lines": {"object": "list", "data": [] if quantity is None else [line], "has_more": False}},
        )  # fmt: skip
        return self

    def land(self, *objects: Mapping[str, Any]) -> None:
        land_objects(
            self.models.client, objects, fetched_at=NOW, api_version="2026-10-28.endive", livemode=False
        )

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self.models.client.insert(f"raw.{table}", [list(columns.values())], column_names=list(columns))


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def use(name: str) -> dict[str, object]:
    """A hundred impressions."""
    return {
        "customer_id": f"cus_{name}", "event_id": "e", "metric_type": "impressions", "quantity": 100,
        "event_time": USED_ON + timedelta(hours=5), "accepted_at": USED_ON, "loaded_at": USED_ON,
        "batch_id": name, "batch_row": 0,
    }  # fmt: skip


NAMES = (
    "agrees", "agrees_with_the_items_of_a_correction", "agrees_below_zero", "pending", "not_compared",
    "not_sent_yet", "rejected", "ledger_differs", "tampered_at_stripe", "invoice_differs", "not_on_invoice",
    "not_on_invoice_of_a_draft", "late_after_invoice", "too_late_for_metering",
)  # fmt: skip
ANNA, BEN = "cus_anna", "cus_ben"


@pytest.fixture(scope="module")
def counted(_models_server: Models) -> Models:
    """A hundred impressions of everybody, of Anna and Ben on 19 days; the models are built on them once."""
    models = _models_server
    names = [*NAMES, "anna", "ben"]
    for name in names:
        models.insert_subscription(f"cus_{name}", STARTED)
    models.insert_customers([f"cus_{name}" for name in names], STARTED)
    models.insert_events([use(name) for name in NAMES])
    models.insert_events([use("agrees_below_zero") | {"event_id": "minus", "quantity": -150}])
    for name in ("anna", "ben"):
        models.insert_events([
            use(name) | {"event_id": str(day), "event_time": NOW - timedelta(days=day)}
            for day in range(1, 20)
        ])  # fmt: skip
    models.build("stripe_reconciliation", as_of=NOW)
    return models


@pytest.fixture
def models(counted: Models) -> Models:
    """What was counted, and nothing of Stripe yet."""
    for table in ("stripe_objects", "stripe_meter_ledger", "stripe_meter_summaries"):
        counted.client.command(f"truncate table raw.{table}")
    return counted


def test_each_difference_has_its_likely_cause(models: Models) -> None:
    def of(name: str) -> Sides:
        return Sides(models, name)

    of("nobody").land(
        {"id": "mtr_i", "object": "billing.meter", "event_name": "apex_impressions", "status": "active"},
        {"id": "price_i", "object": "price", "recurring": {"usage_type": "metered", "meter": "mtr_i"}},
    )
    later = FINALIZED + timedelta(days=1)
    cases = {
        "agrees": of("agrees").ledger(100).meter(100).invoice(100),
        "agrees_with_the_items_of_a_correction": (
            of("agrees_with_the_items_of_a_correction").ledger(130).ledger(-30).meter(100).invoice(100)
        ),
        # Corrections outweigh use, which Stripe bills as nothing.
        "agrees_below_zero": of("agrees_below_zero").ledger(100).ledger(-150).meter(-50).invoice(0),
        "pending": of("pending").ledger(100, "pending", settled_at=None).meter(0),
        "not_compared": of("not_compared").ledger(100),
        "not_sent_yet": of("not_sent_yet").ledger(60).meter(60, counted_until=NEVER_READ),
        "rejected": of("rejected").ledger(100, "rejected").meter(0),
        "ledger_differs": of("ledger_differs").ledger(60).meter(60),
        "tampered_at_stripe": of("tampered_at_stripe").ledger(100).meter(99).invoice(99),
        "invoice_differs": of("invoice_differs").ledger(100).meter(100).invoice(90),
        "not_on_invoice": of("not_on_invoice").ledger(100).meter(100).invoice(None),
        # A draft three weeks after the period's end.
        "not_on_invoice_of_a_draft": (
            of("not_on_invoice_of_a_draft").ledger(100).meter(100).invoice(100, status="draft")
        ),
        "late_after_invoice": (
            of("late_after_invoice").ledger(70).ledger(30, settled_at=later).meter(100).invoice(70)
        ),
        "too_late_for_metering": of("too_late_for_metering").ledger(70).ledger(30, "invoiced").meter(70),
    }
    assert set(cases) == set(NAMES)
    found = {
        (each.customer_id, each.metric_type): each for each in comparisons(models.client, everything=True)
        if each.period_start == STARTED
    }  # fmt: skip
    causes = {name: found[f"cus_{name}", "impressions"].cause for name in cases}
    expected = {name: "" if name.startswith("agrees") else name.removesuffix("_of_a_draft") for name in cases}
    assert causes == expected
    explained = {"not_sent_yet", "late_after_invoice", "too_late_for_metering"}
    for name in cases:
        must_look = expected[name] not in explained | {""}
        assert found[f"cus_{name}", "impressions"].is_difference == must_look, name
    tampered = found["cus_tampered_at_stripe", "impressions"]
    assert (tampered.counted_quantity, tampered.ledger_quantity, tampered.meter_quantity) == (100, 100, 99)
    # Only customers, metrics and periods that Stripe was told or asked of are compared.
    assert len(found) == len(cases)


def test_an_event_that_is_tampered_with_at_stripe_is_found_by_the_customers_name(
    models: Models, engine: sa.Engine, stripe_sandbox: Sandbox
) -> None:
    """The whole way: events, models, sync, meters; then one meter event is cancelled behind our back."""
    stripe_sandbox.clock(NOW)
    client, clock = stripe_sandbox.client(), ManualClock(NOW)
    with engine.begin() as connection:
        bootstrap(client, connection, NOW, livemode=False)
        for customer in (ANNA, BEN):
            created = client.v1.customers.create({"metadata": {"customer_id": customer}})
            link(connection, "customer", customer, created.id, STARTED, livemode=False)

    sync = UsageSync(engine, models.client, client, clock, livemode=False)
    assert sync.run().sent == 38

    def compare() -> list[Comparison]:
        ask_stripe(engine, models.client, client, clock, livemode=False, wait=lambda _seconds: None)
        return comparisons(models.client)

    assert compare() == []
    agreed = comparisons(models.client, everything=True)
    assert (
        sum(each.meter_quantity for each in agreed) == sum(each.counted_quantity for each in agreed) == 3_800
    )

    victim = next(event for event in stripe_sandbox.meter_events() if ANNA in event["identifier"])
    client.v1.billing.meter_event_adjustments.create(
        {
            "event_name": victim["event_name"],
            "type": "cancel",
            "cancel": {"identifier": victim["identifier"]},
        }
    )
    [difference] = compare()
    assert (difference.customer_name, difference.cause) == (ANNA, "tampered_at_stripe")
    assert difference.counted_quantity - difference.meter_quantity == victim["value"] == 100

    # Somebody else's event in Ben's name.
    client.v1.billing.meter_events.create(
        {
            "event_name": "apex_api_calls",
            "timestamp": victim["timestamp"],
            "payload": {"value": "7", "stripe_customer_id": _stripe_id(engine, BEN)},
        }
    )
    foreign = [each for each in compare() if each.customer_name == BEN]
    assert [(each.metric_type, each.meter_quantity) for each in foreign] == [("api_calls", 7)]


def _stripe_id(engine: sa.Engine, customer: str) -> str:
    with engine.connect() as connection:
        return stripe_ids(connection, "customer", livemode=False)[customer]
