"""The offline Stripe: meter events, their identifiers, windows and late errors."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from tests.stripe.sandbox import Sandbox

NOW = datetime(2026, 6, 15, 10, 30, tzinfo=UTC)
DAY = 86_400


@pytest.fixture
def meter(stripe_sandbox: Sandbox) -> str:
    stripe_sandbox.clock(NOW)
    made = stripe_sandbox.client().v1.billing.meters.create(
        {
            "default_aggregation": {"formula": "sum"},
            "display_name": "Impressions",
            "event_name": "apex_impressions",
        }
    )
    return made.id


def send(sandbox: Sandbox, customer: str, value: str = "1", **more: Any) -> Any:
    params: Any = {
        "event_name": "apex_impressions",
        "payload": {"stripe_customer_id": customer, "value": value},
        **more,
    }
    return sandbox.client().v1.billing.meter_events.create(params)


def summaries(sandbox: Sandbox, meter: str, customer: str, **params: Any) -> list[tuple[int, int, float]]:
    found = sandbox.client().v1.billing.meters.event_summaries.list(
        meter,
        {"customer": customer, **params},  # type: ignore[typeddict-item]
    )
    return [
        (summary.start_time, summary.end_time, summary.aggregated_value)
        for summary in found.auto_paging_iter()
    ]


def test_an_identifier_counts_once_in_a_day_and_may_come_again_after_it(
    stripe_sandbox: Sandbox, meter: str
) -> None:
    customer = stripe_sandbox.client().v1.customers.create().id
    send(stripe_sandbox, customer, "5", identifier="one")
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier one") as refused:
        send(stripe_sandbox, customer, "6", identifier="one")
    assert (refused.value.http_status, refused.value.code) == (400, None)
    stripe_sandbox.behave(meter_duplicate_code="duplicate_meter_event")
    with pytest.raises(stripe.InvalidRequestError) as coded:
        send(stripe_sandbox, customer, "6", identifier="one")
    assert coded.value.code == "duplicate_meter_event"
    stripe_sandbox.clock(NOW + timedelta(days=1))
    send(stripe_sandbox, customer, "7", identifier="one")
    assert [event["value"] for event in stripe_sandbox.meter_events()] == [5, 7]


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (-35 * DAY, None),
        (-35 * DAY - 1, "timestamp_too_far_in_past"),
        (300, None),
        (301, "timestamp_in_future"),
    ],
)
def test_a_timestamp_may_be_35_days_old_and_5_minutes_ahead(
    stripe_sandbox: Sandbox, meter: str, seconds: int, code: str | None
) -> None:
    customer = stripe_sandbox.client().v1.customers.create().id
    timestamp = int(NOW.timestamp()) + seconds
    if code is None:
        assert send(stripe_sandbox, customer, timestamp=timestamp).timestamp == timestamp
        return
    with pytest.raises(stripe.InvalidRequestError) as refused:
        send(stripe_sandbox, customer, timestamp=timestamp)
    assert refused.value.code == code
    assert stripe_sandbox.meter_events() == []


def test_summaries_add_up_by_hour_and_day_newest_first(stripe_sandbox: Sandbox, meter: str) -> None:
    customer = stripe_sandbox.client().v1.customers.create().id
    midnight = int(NOW.replace(hour=0, minute=0).timestamp())
    for at, value in ((0, "5"), (3_599, "-2"), (3_600, "10"), (-1, "100")):
        send(stripe_sandbox, customer, value, timestamp=midnight + at)
    window: Any = {"start_time": midnight - DAY, "end_time": midnight + DAY}
    assert summaries(stripe_sandbox, meter, customer, value_grouping_window="day", **window) == [
        (midnight, midnight + DAY, 13),
        (midnight - DAY, midnight, 100),
    ]
    assert summaries(stripe_sandbox, meter, customer, value_grouping_window="hour", limit=1, **window) == [
        (midnight + 3_600, midnight + 7_200, 10),
        (midnight, midnight + 3_600, 3),
        (midnight - 3_600, midnight, 100),
    ]
    assert summaries(stripe_sandbox, meter, customer, **window) == [(midnight - DAY, midnight + DAY, 113)]
    with pytest.raises(stripe.InvalidRequestError, match="aligned with day"):
        summaries(
            stripe_sandbox,
            meter,
            customer,
            start_time=midnight + 3_600,
            end_time=midnight + DAY,
            value_grouping_window="day",
        )


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"stripe_customer_id": "cus_nobody", "value": "1"}, "meter_event_customer_not_found"),
        ({"value": "1"}, "meter_event_no_customer_defined"),
        ({"stripe_customer_id": None, "value": "1.5"}, "meter_event_invalid_value"),
    ],
)
def test_what_is_wrong_with_an_accepted_event_is_told_later(
    stripe_sandbox: Sandbox, meter: str, payload: dict[str, str | None], code: str
) -> None:
    client = stripe_sandbox.client()
    customer = client.v1.customers.create().id
    sent = {key: customer if value is None else value for key, value in payload.items()}
    stripe_sandbox.behave(meter_delay_seconds=600)
    client.v1.billing.meter_events.create(
        {"event_name": "apex_impressions", "identifier": "bad", "payload": sent}
    )
    assert client.v2.core.events.list().data == []
    stripe_sandbox.clock(NOW + timedelta(seconds=600))
    (event,) = client.v2.core.events.list({"types": ["v1.billing.meter.error_report_triggered"]}).data
    fetched: Any = client.v2.core.events.retrieve(event.id)
    assert fetched.related_object.id == meter
    (kind,) = fetched.data.reason.error_types
    assert (kind.code, kind.sample_errors[0].request.identifier) == (code, "bad")
    assert [found["state"] for found in stripe_sandbox.meter_events()] == ["rejected"]


def test_an_event_of_no_meter_is_told_later_too(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    payload = {"stripe_customer_id": "cus_nobody", "value": "1"}
    client.v1.billing.meter_events.create({"event_name": "nothing", "payload": payload})
    (event,) = client.v2.core.events.list().data
    assert event.type == "v1.billing.meter.no_meter_found"


def test_an_error_report_may_name_the_request_by_its_idempotency_key(
    stripe_sandbox: Sandbox, meter: str
) -> None:
    stripe_sandbox.behave(meter_error_names="idempotency_key")
    client = stripe_sandbox.client()
    client.v1.billing.meter_events.create(
        {
            "event_name": "apex_impressions",
            "identifier": "bad",
            "payload": {"stripe_customer_id": "cus_nobody", "value": "1"},
        },
        {"idempotency_key": "the-key"},
    )
    (event,) = client.v2.core.events.list().data
    fetched: Any = client.v2.core.events.retrieve(event.id)
    assert fetched.data.reason.error_types[0].sample_errors[0].request.identifier == "the-key"


def test_a_counted_event_can_be_cancelled_for_a_day(stripe_sandbox: Sandbox, meter: str) -> None:
    customer = stripe_sandbox.client().v1.customers.create().id
    for identifier in ("one", "two"):
        send(stripe_sandbox, customer, "5", identifier=identifier)
    adjustments = stripe_sandbox.client().v1.billing.meter_event_adjustments
    adjustments.create({"cancel": {"identifier": "one"}, "event_name": "apex_impressions", "type": "cancel"})
    start = int(NOW.replace(hour=0, minute=0).timestamp())
    assert summaries(stripe_sandbox, meter, customer, start_time=start, end_time=start + DAY)[0][2] == 5
    stripe_sandbox.clock(NOW + timedelta(days=1))
    with pytest.raises(stripe.InvalidRequestError, match="within 24 hours"):
        adjustments.create(
            {"cancel": {"identifier": "two"}, "event_name": "apex_impressions", "type": "cancel"}
        )


def test_two_calls_at_once_for_a_customer_and_meter_are_one_too_many(
    stripe_sandbox: Sandbox, meter: str
) -> None:
    stripe_sandbox.behave(meter_call_seconds=0.3)
    customers = [stripe_sandbox.client().v1.customers.create().id for _ in range(2)]
    outcomes: dict[int, str | None] = {}
    barrier = threading.Barrier(3)

    def call(number: int, customer: str) -> None:
        barrier.wait(10)
        try:
            send(stripe_sandbox, customer)
            outcomes[number] = "taken"
        except stripe.StripeError as error:
            outcomes[number] = f"{error.http_status} {error.error.code if error.error else None}"

    threads = [threading.Thread(target=call, args=(number, customers[number // 2])) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(str(outcome) for outcome in outcomes.values()) == ["429 lock_timeout", "taken", "taken"]
    assert outcomes[2] == "taken"
