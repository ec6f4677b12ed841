"""Webhooks as they really come: twice, in reverse, late, forged, of no use, or never."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from apex_pipelines.stripe import inbox
from apex_pipelines.stripe.inbox import NoSuchWebhook, count_due, list_waiting, retry_webhooks
from tests.ingest.conftest import Api
from tests.ingest.webhook_bodies import NOW, stripe_headers
from tests.stripe.reading import START, StripeWorld, Subscribed

TYPES = ("customer", "coupon", "product", "price", "charge", "invoice", "subscription")

PAYMENTS = "select status, occurred_at from payments order by attempt_number"


@pytest.fixture
def deliver(world: StripeWorld, new_api: Callable[..., Api]) -> Iterator[Callable[..., int]]:
    """Post an event to the ingest API, signed by Stripe unless said otherwise; the answer's status."""
    secret = world.sandbox.webhook_secret
    with httpx.Client(base_url=new_api(STRIPE_WEBHOOK_SECRET=secret).url, timeout=15) as client:

        def post(event: dict[str, Any], **signing: Any) -> int:
            body = json.dumps(event).encode()
            headers = stripe_headers(body, **{"secret": secret, **signing})
            return client.post("/webhooks/stripe", content=body, headers=headers).status_code

        yield post


def events_of(world: StripeWorld) -> list[dict[str, Any]]:
    """All events, the oldest first."""
    pages = list(world.account.reader.pages("/v1/events", {}))
    return [json.loads(one.payload) for page in pages for one in page.objects][::-1]


def busy_days(world: StripeWorld, choices: random.Random) -> None:
    """Customers, a catalogue and coupons that are made, changed and deleted over two weeks."""
    stripe = world.stripe.v1
    customers, coupons, products = [], [], []
    for hour in range(0, 24 * 14, 8):
        world.until(START + timedelta(hours=hour))
        customers.append(stripe.customers.create({"name": f"customer {hour}"}).id)
        stripe.customers.update(choices.choice(customers), {"name": f"changed {hour}"})
        coupons.append(stripe.coupons.create({"percent_off": 10, "duration": "once", "name": f"c{hour}"}).id)
        products.append(stripe.products.create({"name": f"product {hour}"}).id)
        stripe.products.update(choices.choice(products), {"name": f"product, changed {hour}"})
        if choices.random() < 0.4:
            stripe.customers.delete(customers.pop(choices.randrange(len(customers))))
            stripe.coupons.delete(coupons.pop(choices.randrange(len(coupons))))


def fail_and_pay(world: StripeWorld, who: Subscribed) -> None:
    """The trial ends, two tries to collect fail, then the customer pays with another card."""
    world.until(START + timedelta(days=19))
    world.pay_by(who, "pm_card_visa")
    [invoice] = world.stripe.v1.invoices.list({"customer": who.stripe_customer_id, "status": "open"}).data
    world.stripe.v1.invoices.pay(invoice.id)


def test_however_webhooks_come_both_stores_end_as_stripe_is(
    world: StripeWorld, deliver: Callable[..., int]
) -> None:
    choices = random.Random(6)
    who = world.subscribed()
    world.backfill(*TYPES)
    world.pay_by(who, "pm_card_chargeCustomerFail")
    busy_days(world, choices)
    fail_and_pay(world, who)
    events = events_of(world)
    came = [event for event in events if choices.random() < 0.7]
    plan = [*came, *came]
    choices.shuffle(plan)
    for number, event in enumerate(plan):
        assert deliver(event) == 200
        if number % 40 == 0:
            world.drain()
    world.until(world.clock.now() + timedelta(days=1))  # the last ones a day late
    for event in reversed(came):
        assert deliver(event) == 200
    world.drain()
    assert {e["id"] for e in came} == {row[0] for row in world.rows("select event_id from webhook_inbox")}
    report = world.sweep()
    assert report.done > 0, "some came by no webhook"
    for name in TYPES:
        assert {key: body for key, body in world.landed(name).items() if body} == world.at_stripe(name), name
    row = world.subscription(who.subscription_id)
    assert row["status"] == world.at_stripe("subscription")[who.stripe_subscription_id]["status"] == "active"
    tries = [(charge["status"], charge["created"]) for charge in world.at_stripe("charge").values()]
    assert [(status, int(at.timestamp())) for status, at in world.rows(PAYMENTS)] == sorted(
        tries, key=lambda each: each[1]
    )
    assert [status for status, _ in tries].count("failed") >= 2
    assert list_waiting(world.engine, limit=10) == []
    assert world.sweep().total == 0, "nothing is taken in twice"


def test_what_is_not_from_stripe_lately_is_refused_and_logged_and_changes_nothing(
    world: StripeWorld, deliver: Callable[..., int]
) -> None:
    world.stripe.v1.customers.create({"name": "Ada"})
    [event] = events_of(world)
    assert deliver(event, secret="whsec_somebody_else") == 400
    assert deliver(event, at=NOW - 301) == 400
    assert deliver(event, at=NOW + 301) == 400
    assert world.drain().total == 0
    assert world.landed("customer") == {}


def store_event(world: StripeWorld, **event: Any) -> int:
    """An event in the inbox; its number there."""
    body = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.updated",
        "created": 1,
        "livemode": False,
        **event,
    }
    with world.engine.begin() as connection:
        return connection.execute(
            sa.text(
                "insert into webhook_inbox (provider, event_id, event_type, payload, received_at) "
                "values ('stripe', :id, :type, :payload, :at) returning id"
            ),
            {"id": body["id"], "type": body["type"], "payload": json.dumps(body).encode(), "at": START},
        ).scalar_one()


def outcome(world: StripeWorld, row_id: int) -> tuple[Any, ...]:
    [row] = world.rows("select outcome, attempts, error_message from webhook_inbox where id = :id", id=row_id)
    return tuple(row)


def test_an_event_of_no_use_is_marked_with_the_reason(world: StripeWorld) -> None:
    row_id = store_event(
        world, type="radar.early_fraud_warning.created", data={"object": {"id": "x", "object": "y"}}
    )
    assert world.drain().ignored == 1
    assert outcome(world, row_id) == ("ignored", 0, "unknown type")


@pytest.mark.parametrize(
    ("event", "reason"),
    [({"livemode": True}, "live mode"), ({"created": None}, "no event that can be read")],
)
def test_an_event_that_can_never_be_taken_in_rests_at_once(
    world: StripeWorld, event: dict[str, Any], reason: str
) -> None:
    row_id = store_event(world, **event)
    assert world.drain().failed == 1
    became, attempts, message = outcome(world, row_id)
    assert (became, attempts) == ("failed", 1)
    assert reason in message


def test_what_fails_is_tried_again_ever_later_then_rests_until_somebody_asks(world: StripeWorld) -> None:
    row_id = store_event(world, data={"object": {"id": "ch_unknown", "object": "charge"}})
    at = START
    for attempt in range(1, inbox.MAX_ATTEMPTS):
        assert world.drain().retrying == 1
        assert world.drain().total == 0, "it waits"
        [(due,)] = world.rows("select not_before from webhook_inbox")
        assert due - at == min(timedelta(minutes=2 ** (attempt - 1)), inbox.LONGEST_BACK_OFF)
        at = due
        world.until(at)
    report = world.drain()
    assert report.failed == 1
    assert "ch_unknown" in report.failures[0]
    [waiting] = list_waiting(world.engine, limit=10)
    assert (waiting.id, waiting.state, waiting.attempts) == (row_id, "failed", inbox.MAX_ATTEMPTS)
    assert world.drain().total == 0
    assert retry_webhooks(world.engine, at, row_id=row_id) == 1
    assert world.drain().retrying == 1
    with pytest.raises(NoSuchWebhook, match="apex stripe inbox"):
        retry_webhooks(world.engine, at, row_id=row_id + 1)


def test_while_stripe_is_away_nothing_is_given_up(world: StripeWorld) -> None:
    made = world.stripe.v1.customers.create({"name": "Ada"})
    store_event(world, data={"object": {"id": made.id, "object": "customer"}})
    world.sandbox.fault(status=503)
    with world.engine.begin() as connection:
        connection.execute(
            sa.text("update webhook_inbox set attempts = :many"), {"many": inbox.MAX_ATTEMPTS * 2}
        )
    assert world.drain().retrying == 1
    world.until(START + inbox.LONGEST_BACK_OFF)
    world.sandbox.no_faults()
    assert world.drain().done == 1
    assert made.id in world.landed("customer")


def test_several_workers_share_the_inbox(world: StripeWorld) -> None:
    made = [world.stripe.v1.customers.create({"name": str(number)}).id for number in range(5)]
    for number, name in enumerate(made * 60):
        store_event(world, id=f"evt_{number}", data={"object": {"id": name, "object": "customer"}})
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: world.drain(), range(3)))
    assert sum(report.done for report in reports) == 300
    with world.engine.connect() as connection:
        assert count_due(connection, START + timedelta(days=9)) == 0
    assert set(world.landed("customer")) == set(made)


LEDGER_ENTRY = """
insert into stripe_meter_ledger (
    livemode, customer_id, stripe_customer_id, subscription_id, metric_type, usage_date, period_start,
    slot_start, number, quantity, identifier, state, created_at, settled_at
) values (false, 'a', 'cus_nobody', 'b', 'impressions', :at, :at, :at, 1, 5, 'bad', 'sent', :at, :at)
"""


def test_a_report_of_meter_errors_marks_the_entry_in_the_ledger(world: StripeWorld) -> None:
    world.subscribed()
    with world.engine.begin() as connection:
        connection.execute(sa.text(LEDGER_ENTRY), {"at": START})
    world.stripe.v1.billing.meter_events.create(
        {
            "event_name": "apex_impressions",
            "identifier": "bad",
            "payload": {"stripe_customer_id": "cus_nobody", "value": "5"},
        },
        {"idempotency_key": "bad.1"},
    )
    world.until(START + timedelta(hours=1))
    [thin] = world.stripe.v2.core.events.list({"types": ["v1.billing.meter.error_report_triggered"]}).data
    store_event(world, id=thin.id, type=thin.type, object="v2.core.event", created=thin.created)
    assert world.drain().done == 1
    [(state, message)] = world.rows("select state, error_message from stripe_meter_ledger")
    assert state == "rejected"
    assert "customer_not_found" in message
