"""The ledger of what Stripe was told of use: rows of `stripe_meter_ledger`, and the mark of who reads counts.

Belongs here: its SQL. Does not belong here: what is to be told (`meter_rules.py`), calls
(`meter_sending.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.stripe.meter_rules import NewEntry, Slot, SlotKey, Told
from apex_pipelines.stripe.models import MeterLedgerEntry, SentState, StripeCursor

CURSOR = "usage_sync"
_ROWS_PER_STATEMENT = 1_000


class AnotherSyncRuns(RuntimeError):
    """Use is being sent by another process; one at a time."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A line of the ledger as it stands."""

    id: int
    customer_id: str
    stripe_customer_id: str
    metric_type: str
    slot_start: datetime
    quantity: int
    identifier: str
    first_sent_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an entry; one that is still pending keeps the reason."""

    entry_id: int
    state: SentState
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """How far counts were read: those changed before `counted_until`, of slots ended by `synced_at`."""

    counted_until: datetime
    synced_at: datetime


@contextmanager
def alone(engine: sa.Engine, *, livemode: bool, wait_seconds: int) -> Iterator[None]:
    """Nobody else writes entries meanwhile; ends with the connection, so the killed hold nobody up.

    Raises
    ------
    AnotherSyncRuns
        If somebody else did for all of `wait_seconds`.
    """
    with engine.begin() as connection:
        connection.execute(sa.text(f"set local lock_timeout = '{wait_seconds}s'"))
        lock = sa.text("select pg_advisory_xact_lock(hashtext('apex.usage_sync'), :livemode)")
        try:
            connection.execute(lock, {"livemode": int(livemode)})
        except sa.exc.OperationalError as error:
            raise AnotherSyncRuns(
                f"another process sends use to Stripe, {wait_seconds} s of waiting are over; try again later"
            ) from error
        yield


def read_mark(connection: sa.Connection, *, livemode: bool) -> Mark | None:
    """The mark of the last reading; None before the first."""
    row = connection.execute(
        sa.select(StripeCursor.position, StripeCursor.updated_at).where(
            StripeCursor.name == CURSOR, StripeCursor.livemode == livemode
        )
    ).one_or_none()
    if row is None or row.position is None:
        return None
    return Mark(datetime.fromisoformat(row.position), row.updated_at)


def write_mark(connection: sa.Connection, mark: Mark, *, livemode: bool) -> None:
    """Remember that everything counted up to the mark stands in the ledger."""
    changes = {
        "position": mark.counted_until.isoformat(),
        "finished_at": mark.synced_at,
        "updated_at": mark.synced_at,
    }
    row = {"name": CURSOR, "livemode": livemode, **changes}
    statement = insert(StripeCursor).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["name", "livemode"], set_=changes))


def told(connection: sa.Connection, keys: Sequence[SlotKey], *, livemode: bool) -> dict[SlotKey, Told]:
    """What was told of these slots; those that the ledger does not know are left out."""
    query = sa.text(
        """
        select customer_id, metric_type, slot_start,
            coalesce(sum(quantity) filter (where state <> 'rejected'), 0)::bigint as quantity,
            max(number) as last_number
        from stripe_meter_ledger
        join unnest(
            cast(:customers as text[]), cast(:metrics as text[]), cast(:starts as timestamptz[])
        ) as slot (customer_id, metric_type, slot_start) using (customer_id, metric_type, slot_start)
        where livemode = :livemode
        group by customer_id, metric_type, slot_start
        """
    )
    found = {}
    for first in range(0, len(keys), _ROWS_PER_STATEMENT):
        batch = keys[first : first + _ROWS_PER_STATEMENT]
        customers, metrics, starts = map(list, zip(*batch, strict=True))
        parameters = {"customers": customers, "metrics": metrics, "starts": starts, "livemode": livemode}
        for row in connection.execute(query, parameters):
            found[row.customer_id, row.metric_type, row.slot_start] = Told(row.quantity, row.last_number)
    return found


def slots_of(connection: sa.Connection, customer_id: str, now: datetime, *, livemode: bool) -> list[Slot]:
    """Slots of a customer of which Stripe was told, as if nothing were counted in them at `now`."""
    entry = MeterLedgerEntry
    query = (
        sa.select(entry.metric_type, entry.slot_start, entry.subscription_id, entry.period_start)
        .distinct(entry.metric_type, entry.slot_start)
        .where(entry.customer_id == customer_id, entry.livemode == livemode)
        .order_by(entry.metric_type, entry.slot_start, entry.number.desc())
    )
    return [
        Slot(customer_id, metric, start, start, subscription_id, period_start, period_end=now, quantity=0)
        for metric, start, subscription_id, period_start in connection.execute(query).tuples()
    ]


def customers_rejected_since(connection: sa.Connection, instant: datetime, *, livemode: bool) -> set[str]:
    """Customers of whom an entry was rejected at or after an instant: what it said is still to be told."""
    entry = MeterLedgerEntry
    query = (
        sa.select(entry.customer_id)
        .where(entry.livemode == livemode, entry.state == SentState.REJECTED, entry.settled_at >= instant)
        .distinct()
    )
    return set(connection.scalars(query))


def write_entries(
    connection: sa.Connection, entries: Collection[NewEntry], now: datetime, *, livemode: bool
) -> None:
    """Write entries down before they are sent; what is too late to be metered is settled as such."""
    rows = [
        {
            "livemode": livemode,
            "customer_id": entry.slot.customer_id,
            "stripe_customer_id": entry.stripe_customer_id,
            "subscription_id": entry.slot.subscription_id,
            "metric_type": entry.slot.metric_type,
            "usage_date": entry.slot.slot_start.date(),
            "period_start": entry.slot.period_start,
            "slot_start": entry.slot.slot_start,
            "number": entry.number,
            "quantity": entry.quantity,
            "identifier": entry.identifier,
            "state": str(SentState.INVOICED if entry.is_too_late else SentState.PENDING),
            "created_at": now,
            "settled_at": now if entry.is_too_late else None,
        }
        for entry in entries
    ]
    for first in range(0, len(rows), _ROWS_PER_STATEMENT):
        connection.execute(sa.insert(MeterLedgerEntry), rows[first : first + _ROWS_PER_STATEMENT])


def pending_entries(
    connection: sa.Connection, *, livemode: bool, customer_id: str | None = None
) -> list[LedgerEntry]:
    """Entries of which it is not known that Stripe has them, in the order of their making."""
    entry = MeterLedgerEntry
    query = (
        sa.select(
            entry.id, entry.customer_id, entry.stripe_customer_id, entry.metric_type, entry.slot_start,
            entry.quantity, entry.identifier, entry.first_sent_at, entry.error_message,
        )
        .where(entry.state == SentState.PENDING, entry.livemode == livemode)
        .order_by(entry.id)
    )  # fmt: skip
    if customer_id is not None:
        query = query.where(entry.customer_id == customer_id)
    return [LedgerEntry(*row) for row in connection.execute(query)]


def begin_sending(connection: sa.Connection, entries: Collection[LedgerEntry], now: datetime) -> None:
    """Note when their first attempt began, before it does."""
    entry = MeterLedgerEntry
    fresh = [each.id for each in entries if each.first_sent_at is None]
    connection.execute(sa.update(entry).where(entry.id.in_(fresh)).values(first_sent_at=now))


def settle(connection: sa.Connection, outcomes: Collection[Outcome], now: datetime) -> None:
    """Write down what became of pending entries; what was settled meanwhile stays as it is."""
    if not outcomes:
        return
    entry = MeterLedgerEntry.__table__
    statement = (
        sa.update(entry)  # type: ignore[arg-type]  # typed as FromClause by the ORM
        .where(entry.c.id == sa.bindparam("entry_id"), entry.c.state == str(SentState.PENDING))
        .values(
            state=sa.bindparam("new_state"),
            settled_at=sa.bindparam("at"),
            error_message=sa.bindparam("error"),
        )
    )
    rows = [
        {
            "entry_id": outcome.entry_id,
            "new_state": str(outcome.state),
            "at": None if outcome.state is SentState.PENDING else now,
            "error": outcome.error,
        }
        for outcome in outcomes
    ]
    connection.execute(statement, rows)


def settled(
    connection: sa.Connection,
    customer_id: str,
    metric_type: str,
    window: tuple[datetime, datetime],
    *,
    livemode: bool,
) -> tuple[int, datetime | None]:
    """Sum of what Stripe accepted of a customer and metric with timestamps in a window, and when last."""
    entry = MeterLedgerEntry
    total, last = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(entry.quantity), 0), sa.func.max(entry.settled_at)).where(
            entry.livemode == livemode,
            entry.customer_id == customer_id,
            entry.metric_type == metric_type,
            entry.state == SentState.SENT,
            entry.slot_start >= window[0],
            entry.slot_start < window[1],
        )
    ).one()
    return int(total), last


def sent_since(connection: sa.Connection, instant: datetime, *, livemode: bool) -> list[tuple[SlotKey, int]]:
    """What Stripe accepted of each slot that begins at or after an instant."""
    entry = MeterLedgerEntry
    key = (entry.customer_id, entry.metric_type, entry.slot_start)
    query = (
        sa.select(*key, sa.func.sum(entry.quantity))
        .where(entry.livemode == livemode, entry.state == SentState.SENT, entry.slot_start >= instant)
        .group_by(*key)
    )
    rows = connection.execute(query).tuples()
    return [((customer, metric, start), int(total)) for customer, metric, start, total in rows]
