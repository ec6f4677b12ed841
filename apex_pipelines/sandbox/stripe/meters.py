"""Billing meters, their events, adjustments and summaries.

Belongs here: `/v1/billing/meters` and what is sent to them, and what becomes of it later. Does not belong
here: what metered use costs (`lines.py`).

Stripe takes a meter event at once and processes it later: its form, its timestamp and its identifier are
checked when it comes; its meter, its customer and its value when it is processed, and what is wrong with
those is told by an event of /v2. How much later is not documented (`Behaviour.meter_delay_seconds`), nor how
errors are gathered into reports: here each report tells of one event.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from apex_pipelines.sandbox.stripe.account import Account, iso
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid, missing
from apex_pipelines.sandbox.stripe.listing import MOST, Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    Given,
    Group,
    Integer,
    Required,
    Text,
    TextMap,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

OLDEST_SECONDS = 35 * 86_400
EARLIEST_SECONDS = 5 * 60
UNIQUE_SECONDS = 24 * 3_600
CANCEL_SECONDS = 24 * 3_600
_WINDOWS = {"hour": 3_600, "day": 86_400}
_MINUTE = 60
_WHOLE = re.compile(r"-?\d{1,15}")


@routes.post(
    "/v1/billing/meters",
    customer_mapping=Group(event_payload_key=Required(Text(100)), type=Required(Text(choices=("by_id",)))),
    default_aggregation=Required(Group(formula=Required(Text(choices=("count", "last", "sum"))))),
    display_name=Required(Text(250)),
    event_name=Required(Text(100)),
    event_time_window=Text(choices=("day", "hour")),
    value_settings=Group(event_payload_key=Required(Text(100))),
)
def create(account: Account, given: Given) -> Object:
    if account.store.every("billing.meter", event_name=given["event_name"], status="active"):
        raise invalid(
            f"An active meter already exists for event name {given['event_name']}.",
            "event_name",
            "resource_already_exists",
        )
    if "event_time_window" in given:
        # What it does to events that come later is not documented well enough to be played.
        raise invalid("This stand-in keeps no event_time_window; leave it out.", "event_time_window")
    body: Object = {
        "id": account.new_id("mtr"),
        "object": "billing.meter",
        "created": account.now,
        "customer_mapping": given.get(
            "customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}
        ),
        "default_aggregation": given["default_aggregation"],
        "display_name": given["display_name"],
        "event_name": given["event_name"],
        "event_time_window": None,
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": account.now,
        "value_settings": given.get("value_settings", {"event_payload_key": "value"}),
    }
    return account.create(body)


@routes.get("/v1/billing/meters/{meter}")
def retrieve(account: Account, given: Given, meter: str) -> Object:
    return account.need("billing.meter", meter)


@routes.post("/v1/billing/meters/{meter}", display_name=Text(250))
def update(account: Account, given: Given, meter: str) -> Object:
    return account.change(account.need("billing.meter", meter), **given, updated=account.now)


@routes.post("/v1/billing/meters/{meter}/deactivate")
def deactivate(account: Account, given: Given, meter: str) -> Object:
    return account.change(
        account.need("billing.meter", meter),
        "billing.meter.deactivated",
        status="inactive",
        status_transitions={"deactivated_at": account.now},
        updated=account.now,
    )


@routes.post("/v1/billing/meters/{meter}/reactivate")
def reactivate(account: Account, given: Given, meter: str) -> Object:
    return account.change(
        account.need("billing.meter", meter),
        "billing.meter.reactivated",
        status="active",
        status_transitions={"deactivated_at": None},
        updated=account.now,
    )


@routes.list("/v1/billing/meters", status=Text(choices=("active", "inactive")))
def list_all(account: Account, given: Given) -> Page:
    return page(account, "billing.meter", "/v1/billing/meters", given, {"status": given.get("status")})


# Events.

METER_EVENT = Group(
    event_name=Required(Text(100)), identifier=Text(100), payload=Required(TextMap()), timestamp=Integer()
)


@routes.post("/v1/billing/meter_events", METER_EVENT)
def create_event(account: Account, given: Given) -> Object:
    payload = given["payload"] or {}
    meter = _meter_of(account, given["event_name"])
    customer = payload.get(_customer_key(meter))
    _live_by_customer(account, customer)
    timestamp = given.get("timestamp", account.now)
    _check_timestamp(account, timestamp)
    identifier = given.get("identifier") or account.new_id("mtrevt")
    _check_identifier(account, identifier)
    value = payload.get(_value_key(meter), "")
    account.store.connection.execute(
        "insert into meter_events (identifier, event_name, customer, value, timestamp, created, "
        "idempotency_key, state) values (?, ?, ?, ?, ?, ?, ?, 'accepted')",
        (
            identifier,
            given["event_name"],
            customer,
            int(value) if _WHOLE.fullmatch(value) else None,
            timestamp,
            account.now,
            account.idempotency_key,
        ),
    )
    account.schedule("meter_event", identifier, account.now + account.behaviour.meter_delay_seconds)
    return {
        "object": "billing.meter_event",
        "created": account.now,
        "event_name": given["event_name"],
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": timestamp,
    }


def _meter_of(account: Account, event_name: str) -> Object | None:
    active = account.store.every("billing.meter", event_name=event_name)
    return active[-1] if active else None


def _customer_key(meter: Object | None) -> str:
    return "stripe_customer_id" if meter is None else str(meter["customer_mapping"]["event_payload_key"])


def _value_key(meter: Object | None) -> str:
    return "value" if meter is None else str(meter["value_settings"]["event_payload_key"])


def held_by(account: Account, raw: Any) -> tuple[str, str]:
    """Customer and meter that a meter event holds while it is taken."""
    payload = raw.get("payload", {})
    event_name = str(raw.get("event_name"))
    customer = (
        payload.get(_customer_key(_meter_of(account, event_name))) if isinstance(payload, dict) else None
    )
    return str(customer), event_name


def _live_by_customer(account: Account, customer: str | None) -> None:
    found = None if customer is None else account.store.get("customer", customer)
    if found is not None and not found.get("deleted"):
        account.live_by(found["test_clock"])


def _check_timestamp(account: Account, timestamp: int) -> None:
    if timestamp < account.now - OLDEST_SECONDS:
        raise invalid(
            "The timestamp must be within the past 35 calendar days.",
            "timestamp",
            "timestamp_too_far_in_past",
        )
    if timestamp > account.now + EARLIEST_SECONDS:
        raise invalid(
            "The timestamp can't be more than 5 minutes in the future.", "timestamp", "timestamp_in_future"
        )


def _check_identifier(account: Account, identifier: str) -> None:
    known = account.store.connection.execute(
        "select 1 from meter_events where identifier = ? and created > ?",
        (identifier, account.now - UNIQUE_SECONDS),
    ).fetchone()
    if known is not None:
        raise invalid(
            f"An event already exists with identifier {identifier}.",
            code=account.behaviour.meter_duplicate_code or None,
        )


def process(account: Account, identifier: str) -> None:
    """Count an accepted event, or tell why it can't be."""
    rows = account.store.connection.execute(
        "select * from meter_events where identifier = ? and state = 'accepted'", (identifier,)
    ).fetchall()
    for row in rows:
        meter = _meter_of(account, row["event_name"])
        wrong = _fault(account, meter, row)
        account.store.connection.execute(
            "update meter_events set state = ? where seq = ?",
            ("rejected" if wrong else "counted", row["seq"]),
        )
        if wrong is not None:
            by_key = account.behaviour.meter_error_names == "idempotency_key"
            _report(account, meter, str(row["idempotency_key"]) if by_key else identifier, *wrong)


def _fault(account: Account, meter: Object | None, row: sqlite3.Row) -> tuple[str, str] | None:
    """Code and message of what is wrong with an accepted event; None when nothing is."""
    if meter is None:
        return "no_meter", f"No meter found for event name {row['event_name']}."
    if meter["status"] != "active":
        return "archived_meter", f"The meter {meter['id']} is inactive."
    if row["customer"] is None:
        return "meter_event_no_customer_defined", f"The payload has no {_customer_key(meter)}."
    customer = account.store.get("customer", row["customer"])
    if customer is None or customer.get("deleted"):
        return "meter_event_customer_not_found", f"No such customer: {row['customer']}."
    if row["value"] is None and meter["default_aggregation"]["formula"] != "count":
        return "meter_event_invalid_value", "The value must be a whole number."
    return None


def _report(account: Account, meter: Object | None, identifier: str, code: str, message: str) -> None:
    instant = iso(account.now)
    data: Object = {
        "developer_message_summary": f"There is 1 invalid event: {message}",
        "reason": {
            "error_count": 1,
            "error_types": [
                {
                    "code": code,
                    "error_count": 1,
                    "sample_errors": [{"error_message": message, "request": {"identifier": identifier}}],
                }
            ],
        },
        "validation_start": instant,
        "validation_end": instant,
    }
    if meter is None:
        account.emit_thin("v1.billing.meter.no_meter_found", data, None)
        return
    related = {"id": meter["id"], "type": "billing.meter", "url": f"/v1/billing/meters/{meter['id']}"}
    account.emit_thin("v1.billing.meter.error_report_triggered", data, related)


@routes.post(
    "/v1/billing/meter_event_adjustments",
    cancel=Required(Group(identifier=Required(Text(100)))),
    event_name=Required(Text(100)),
    type=Required(Text(choices=("cancel",))),
)
def create_adjustment(account: Account, given: Given) -> Object:
    identifier = given["cancel"]["identifier"]
    row = account.store.connection.execute(
        "select * from meter_events where identifier = ? and event_name = ? order by seq desc limit 1",
        (identifier, given["event_name"]),
    ).fetchone()
    if row is None:
        raise missing("billing.meter_event", identifier, "cancel[identifier]")
    _live_by_customer(account, row["customer"])
    if row["created"] <= account.now - CANCEL_SECONDS:
        raise invalid("A meter event can be cancelled within 24 hours of its receipt.", "cancel[identifier]")
    account.store.connection.execute(
        "update meter_events set state = 'cancelled' where seq = ?", (row["seq"],)
    )
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": given["event_name"],
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


# Summaries.


def aggregate(account: Account, meter: Object, customer: str, start: int, end: int) -> int:
    """What a meter has counted of a customer with timestamps in ``[start, end)``."""
    # Only these words are put into the text.
    sums = {"sum": "coalesce(sum(value), 0)", "count": "count(*)"}
    formula = sums.get(meter["default_aggregation"]["formula"])
    where = "event_name = ? and customer = ? and timestamp >= ? and timestamp < ? and state = 'counted'"
    query = (
        f"select value from meter_events where {where} order by timestamp desc, seq desc limit 1"  # noqa: S608
        if formula is None
        else f"select {formula} from meter_events where {where}"  # noqa: S608
    )
    row = account.store.connection.execute(query, (meter["event_name"], customer, start, end)).fetchone()
    return 0 if row is None else int(row[0])


@routes.list(
    "/v1/billing/meters/{meter}/event_summaries",
    customer=Required(Text()),
    end_time=Required(Integer()),
    start_time=Required(Integer()),
    value_grouping_window=Text(choices=("day", "hour")),
)
def list_summaries(account: Account, given: Given, meter: str) -> Page:
    """Summaries, newest first; of windows without any event there is none."""
    body = account.need("billing.meter", meter)
    customer = account.need("customer", given["customer"], "customer")["id"]
    start, end = given["start_time"], given["end_time"]
    window = given.get("value_grouping_window")
    unit = _MINUTE if window is None else _WINDOWS[window]
    for name in ("start_time", "end_time"):
        if given[name] % unit:
            raise invalid(f"{name} must be aligned with {window or 'minute'} boundaries.", name)
    if end <= start:
        raise invalid("end_time must be after start_time.", "end_time")
    found = list(_summaries(account, body, customer, start, end, end - start if window is None else unit))
    limit = given.get("limit", 10)
    if not 1 <= limit <= MOST:
        raise invalid(f"This value must be between 1 and {MOST} (inclusive).", "limit")
    ids = [summary["id"] for summary in found]
    url = f"/v1/billing/meters/{meter}/event_summaries"
    for cursor in ("starting_after", "ending_before"):
        if cursor in given and given[cursor] not in ids:
            raise missing("billing.meter_event_summary", given[cursor], cursor)
    if "ending_before" in given:
        before = found[: ids.index(given["ending_before"])]
        return Page.of("billing.meter_event_summary", url, before[-limit:], len(before) > limit)
    first = ids.index(given["starting_after"]) + 1 if "starting_after" in given else 0
    return Page.of(
        "billing.meter_event_summary", url, found[first : first + limit], len(found) > first + limit
    )


def _summaries(
    account: Account, meter: Object, customer: str, start: int, end: int, window: int
) -> Iterator[Object]:
    offset = start % window
    rows = account.store.connection.execute(
        "select distinct (timestamp - ?) / ? from meter_events "
        "where event_name = ? and customer = ? and timestamp >= ? and timestamp < ? and state = 'counted' "
        "order by 1 desc",
        (offset, window, meter["event_name"], customer, start, end),
    ).fetchall()
    for (number,) in rows:
        first = number * window + offset
        yield {
            "id": f"mtrusg_{meter['id'].split('_')[1]}_{customer.split('_')[-1]}_{first}_{window}",
            "object": "billing.meter_event_summary",
            "aggregated_value": aggregate(account, meter, customer, first, first + window),
            "end_time": first + window,
            "livemode": False,
            "meter": meter["id"],
            "start_time": first,
        }


def busy(customer: str, event_name: str) -> Refusal:
    """A second call for the same customer and meter while one is under way."""
    return Refusal(
        429,
        "invalid_request_error",
        "This object cannot be accessed right now because another API request or Stripe process is "
        f"currently accessing it ({customer}, {event_name}).",
        code="lock_timeout",
    )
