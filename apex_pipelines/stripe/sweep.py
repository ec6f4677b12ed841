"""The event list, read so that nothing depends on webhooks: what they missed is put into their inbox.

Belongs here: reading the list from where the last sweep stood. Does not belong here: what is done about an
event (`inbox.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.stripe.cursors import EVENTS, find_cursor, move_cursor, reading_alone
from apex_pipelines.stripe.event_payloads import read_event
from apex_pipelines.stripe.landing import FetchedObject
from apex_pipelines.stripe.models import StripeCursor
from apex_pipelines.stripe.reading import Position, Reader
from apex_pipelines.webhooks.models import WebhookEvent

# How far back Stripe's list reaches.
REACH = timedelta(days=30)
# An event may show in the list a little after others that are newer.
OVERLAP = timedelta(minutes=15)


class BackfillNeeded(RuntimeError):
    """The event list can't tell all that happened; only reading everything can."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep found: events that it looked at, and those that no webhook had brought."""

    events: int
    missed: int


def check_reach(cursor: StripeCursor | None, now: datetime) -> StripeCursor:
    """The cursor, when the list still reaches back to it.

    Raises
    ------
    BackfillNeeded
        If there is none, or what happened after it may have left the list.
    """
    if cursor is None or cursor.started_at is None:
        raise BackfillNeeded("nothing has been read from Stripe yet; run `apex stripe backfill`")
    if now - cursor.started_at > REACH - OVERLAP:
        raise BackfillNeeded(
            f"the event list was read last at {cursor.started_at.isoformat()} and reaches back "
            f"{REACH.days} days, so events are lost; run `apex stripe backfill --again`"
        )
    return cursor


def sweep(engine: sa.Engine, reader: Reader) -> SweepReport:
    """Put into the inbox what the event list has and webhooks have not brought; safe to repeat.

    Raises
    ------
    BackfillNeeded
        If the list does not reach back to the last sweep.
    ReadingUnderWay
        If another process reads from this account now.
    stripe.StripeError
        If Stripe refuses, or can't be reached.
    """
    with reading_alone(engine, livemode=reader.livemode):
        started_at = reader.clock.now()
        with engine.connect() as connection:
            cursor = check_reach(find_cursor(connection, EVENTS, livemode=reader.livemode), started_at)
        asked = {}
        if cursor.position_at is not None:
            asked["created"] = {"gte": int((cursor.position_at - OVERLAP).timestamp())}
        newest: Position | None = None
        events = missed = 0
        for page in reader.pages("/v1/events", asked, has_created_filter=True):
            newest = newest or page.start
            events += len(page.objects)
            with engine.begin() as connection:
                missed += _store(connection, page.objects, started_at)
        # Only now: pages are read backwards, so after a kill all of them are due again.
        moved = {} if newest is None else {"position": newest.object_id, "position_at": newest.created_at}
        with engine.begin() as connection:
            move_cursor(
                connection, EVENTS, reader.clock.now(), livemode=reader.livemode,
                started_at=started_at, finished_at=reader.clock.now(), **moved,
            )  # fmt: skip
    return SweepReport(events, missed)


def _store(connection: sa.Connection, events: Iterable[FetchedObject], now: datetime) -> int:
    """Into the inbox, as webhooks bring them; how many were not there. Those of no use to us are left out."""
    rows = []
    for event in events:
        payload = event.payload.encode()
        told = read_event(payload)
        if told.kind is not None:
            rows.append(
                {
                    "provider": "stripe",
                    "event_id": told.id,
                    "event_type": told.type,
                    "payload": payload,
                    "received_at": now,
                }
            )
    if not rows:
        return 0
    stored = insert(WebhookEvent).on_conflict_do_nothing().returning(WebhookEvent.id)
    return len(connection.execute(stored, rows).all())
