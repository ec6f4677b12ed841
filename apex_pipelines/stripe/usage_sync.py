"""The daily sync of use: what was counted and Stripe was not told is written down, then sent, then settled.

Belongs here: the order of these steps, and what a run reports. Does not belong here: rules
(`meter_rules.py`), SQL (`meter_ledger.py`, `counted_slots.py`), calls (`meter_sending.py`).

Why it sends exactly the difference, whatever happens in between: docs/decisions/0023.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from stripe import StripeClient, StripeError

from apex_pipelines.platform.clock import Clock
from apex_pipelines.stripe import counted_slots, links, meter_ledger
from apex_pipelines.stripe.bootstrap import METER, meter_name
from apex_pipelines.stripe.links import CustomerLink
from apex_pipelines.stripe.meter_ledger import LedgerEntry, Mark, Outcome
from apex_pipelines.stripe.meter_rules import (
    ADDED_UP_AFTER,
    KNOWN_AGAIN_FOR,
    NewEntry,
    Slot,
    Told,
    is_known_again,
    is_too_late,
    minute_around,
    new_entry,
    which_arrived,
)
from apex_pipelines.stripe.meter_sending import Sending, describe
from apex_pipelines.stripe.meter_summaries import meter_total
from apex_pipelines.stripe.models import SentState

# Links and rejections may become visible a little after the time that they carry.
_MARGIN = timedelta(days=1)
_CALLS_PER_COMMIT_AND_LANE = 25


class NoMeters(RuntimeError):
    """Stripe has no meter for a metric that is to be sent."""


class UnknownCustomer(ValueError):
    """The customer has no counterpart at Stripe."""


@dataclass
class SyncReport:
    """What a run did, or would do.

    Attributes
    ----------
    planned : list of NewEntry
        Differences found by this run, too late ones among them.
    resumed : int
        Entries of earlier runs that were still pending.
    sent, rejected : int
        Entries that Stripe accepted or refused.
    quantities : dict of str to int
        Sum of what was accepted, by metric, in storage units.
    left : list of LedgerEntry
        What is still pending, each with its error, which is None for what was not tried.
    unlinked : dict of str to int
        Slots of customers whom Stripe doesn't know; they are read again once it does.
    """

    planned: list[NewEntry] = field(default_factory=list)
    resumed: int = 0
    sent: int = 0
    rejected: int = 0
    quantities: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    left: list[LedgerEntry] = field(default_factory=list)
    unlinked: dict[str, int] = field(default_factory=dict)

    @property
    def too_late(self) -> int:
        """How many of the differences are of use that Stripe no longer takes."""
        return sum(entry.is_too_late for entry in self.planned)

    def count(self, entries: Collection[LedgerEntry], outcomes: Collection[Outcome]) -> None:
        """Add what became of some of the entries."""
        by_id = {entry.id: entry for entry in entries}
        for outcome in outcomes:
            if outcome.state is SentState.SENT:
                self.sent += 1
                self.quantities[by_id[outcome.entry_id].metric_type] += by_id[outcome.entry_id].quantity
            elif outcome.state is SentState.REJECTED:
                self.rejected += 1


class _Window(NamedTuple):
    """A minute of a customer and metric: the least that Stripe sums up."""

    customer_id: str
    metric_type: str
    minute: datetime


@dataclass
class UsageSync:
    """The sync between one warehouse, one ledger and one account of Stripe.

    Attributes
    ----------
    livemode : bool
        Mode of the client's key; entries of the other one are left alone.
    wait : callable or None
        Waits between attempts; tests give their own.
    """

    engine: sa.Engine
    warehouse: Client
    stripe: StripeClient
    clock: Clock
    livemode: bool
    concurrency: int = 8
    lock_seconds: int = 60
    wait: Callable[[float], object] | None = None

    def run(self, customer_id: str | None = None) -> SyncReport:
        """Send what Stripe was not told, of everybody or of one customer; safe to repeat and to kill.

        For one customer all that was counted is compared, not only what changed.

        Raises
        ------
        AnotherSyncRuns, NoMeters, UnknownCustomer, StripeRefusesUs, UsageBeingCounted
            Nothing is lost by any of them; a later run goes on.
        """
        report = SyncReport()
        with meter_ledger.alone(self.engine, livemode=self.livemode, wait_seconds=self.lock_seconds):
            with self.engine.connect() as connection:
                pending = self._pending(connection, customer_id)
            report.resumed = len(pending)
            self._tell_which_arrived(pending, report)
            with self.engine.begin() as connection:
                entries, mark = self._differences(connection, report, customer_id)
                meter_ledger.write_entries(connection, entries, self.clock.now(), livemode=self.livemode)
                if mark is not None:
                    meter_ledger.write_mark(connection, mark, livemode=self.livemode)
            report.planned = entries
            self._send_pending(report, customer_id)
        return report

    def plan(self, customer_id: str | None = None) -> SyncReport:
        """What `run` would send; writes nothing and calls nobody."""
        report = SyncReport()
        with self.engine.connect() as connection:
            pending = self._pending(connection, customer_id)
            report.resumed = len(pending)
            report.left = pending
            report.planned, _ = self._differences(connection, report, customer_id)
        return report

    def _pending(self, connection: sa.Connection, customer_id: str | None) -> list[LedgerEntry]:
        return meter_ledger.pending_entries(connection, livemode=self.livemode, customer_id=customer_id)

    def _differences(
        self, connection: sa.Connection, report: SyncReport, customer_id: str | None
    ) -> tuple[list[NewEntry], Mark | None]:
        """What is to be told, and the mark that holds once it stands in the ledger."""
        now = self.clock.now()
        linked = links.customer_links(connection, livemode=self.livemode)
        if customer_id is not None:
            if customer_id not in linked:
                raise UnknownCustomer(
                    f"customer {customer_id!r} has no counterpart at Stripe; nothing is sent"
                )
            slots, mark = self._all_slots_of(connection, customer_id), None
        else:
            # Before the slots: what is counted from here on is read next time.
            mark = Mark(counted_slots.newest_change(self.warehouse), now)
            slots = self._changed_slots(connection, linked)
        tellable = []
        for slot in slots:
            link = linked.get(slot.customer_id)
            if link is None:
                report.unlinked[slot.customer_id] = report.unlinked.get(slot.customer_id, 0) + 1
            # What ended before Stripe knew the customer was no business of it.
            elif slot.period_end >= link.linked_at:
                tellable.append(slot)
        known = meter_ledger.told(connection, [slot.key for slot in tellable], livemode=self.livemode)
        found = (
            new_entry(slot, known.get(slot.key, Told()), linked[slot.customer_id].stripe_id, now)
            for slot in tellable
        )
        return [entry for entry in found if entry is not None], mark

    def _changed_slots(self, connection: sa.Connection, linked: dict[str, CustomerLink]) -> list[Slot]:
        mark = meter_ledger.read_mark(connection, livemode=self.livemode)
        if mark is None:
            return counted_slots.read_slots(self.warehouse, changed_since=datetime(1970, 1, 1, tzinfo=UTC))
        recently = mark.synced_at - _MARGIN
        whole = meter_ledger.customers_rejected_since(connection, recently, livemode=self.livemode)
        whole |= {id_ for id_, link in linked.items() if link.linked_at >= recently}
        return counted_slots.read_slots(
            self.warehouse, changed_since=mark.counted_until, ended_since=mark.synced_at, customers=whole
        )

    def _all_slots_of(self, connection: sa.Connection, customer_id: str) -> list[Slot]:
        """Also those that are not counted any more, with nothing in them."""
        counted_slots.refuse_while_counting(self.warehouse)
        slots = counted_slots.read_slots(self.warehouse, customers=[customer_id])
        counted = {slot.key for slot in slots}
        told = meter_ledger.slots_of(connection, customer_id, self.clock.now(), livemode=self.livemode)
        return slots + [slot for slot in told if slot.key not in counted]

    def _meters(self, metric_types: Collection[str]) -> dict[str, str]:
        """Meter id by metric."""
        with self.engine.connect() as connection:
            linked = links.stripe_ids(connection, METER, livemode=self.livemode)
        found = {
            metric: linked[meter_name(metric)] for metric in metric_types if meter_name(metric) in linked
        }
        if missing := sorted(set(metric_types) - set(found)):
            raise NoMeters(f"Stripe has no meter for {', '.join(missing)}; run `apex stripe bootstrap`")
        return found

    def _tell_which_arrived(self, pending: Collection[LedgerEntry], report: SyncReport) -> None:
        """Settle entries that can't be sent any more, those that were by what the meters add up to."""
        now = self.clock.now()
        fresh = [entry for entry in pending if _can_be_sent(entry, now)]
        stale = [entry for entry in pending if not _can_be_sent(entry, now)]
        never_sent = [entry for entry in stale if entry.first_sent_at is None]
        with self.engine.begin() as connection:
            late = [Outcome(entry.id, SentState.INVOICED) for entry in never_sent]
            meter_ledger.settle(connection, late, now)
        windows: dict[_Window, list[LedgerEntry]] = defaultdict(list)
        for entry in stale:
            if entry.first_sent_at is not None:
                windows[_window(entry)].append(entry)
        # What may have arrived and can still be sent is settled by that, and the others after it.
        sent_again = {_window(entry) for entry in fresh}
        meters = self._meters({window.metric_type for window in windows})
        for window, entries in windows.items():
            if window in sent_again:
                continue
            try:
                outcomes = self._judge(window, entries, meters[window.metric_type])
            except StripeError as error:
                # They wait for another run; everything else need not wait for them.
                problem = f"whether it arrived could not be asked: {describe(error)}"
                outcomes = [Outcome(entry.id, SentState.PENDING, problem) for entry in entries]
            with self.engine.begin() as connection:
                meter_ledger.settle(connection, outcomes, now)
            report.count(entries, outcomes)

    def _judge(self, window: _Window, entries: Sequence[LedgerEntry], meter_id: str) -> list[Outcome]:
        """What became of entries of one minute that may have arrived, by what the meter has of it."""
        span = minute_around(window.minute)
        with self.engine.connect() as connection:
            settled, last = meter_ledger.settled(
                connection, window.customer_id, window.metric_type, span, livemode=self.livemode
            )
        if last is not None and self.clock.now() - last < ADDED_UP_AFTER:
            return []
        total = meter_total(self.stripe, meter_id, entries[0].stripe_customer_id, span)
        arrived = which_arrived([entry.quantity for entry in entries], total - settled)
        if arrived is None:
            problem = (
                f"sent over {KNOWN_AGAIN_FOR} ago without an answer; the meter has {total}, {settled} of it "
                "is settled, so it can't be told whether this arrived; compare the meter's events at Stripe"
            )
            return [Outcome(entry.id, SentState.PENDING, problem) for entry in entries]
        lost = "Stripe's meter never got it; what it said is sent anew"
        return [
            Outcome(entry.id, SentState.SENT) if came else Outcome(entry.id, SentState.REJECTED, lost)
            for entry, came in zip(entries, arrived, strict=True)
        ]

    def _send_pending(self, report: SyncReport, customer_id: str | None) -> None:
        with self.engine.connect() as connection:
            pending = self._pending(connection, customer_id)
        self._meters({entry.metric_type for entry in pending})
        sending = Sending(self.stripe, self.concurrency, self.wait)
        size = self.concurrency * _CALLS_PER_COMMIT_AND_LANE
        for first in range(0, len(pending), size):
            if sending.is_over:
                break
            now = self.clock.now()
            batch = [entry for entry in pending[first : first + size] if _can_be_sent(entry, now)]
            with self.engine.begin() as connection:
                meter_ledger.begin_sending(connection, batch, now)
            outcomes: list[Outcome] = []
            try:
                sending.send(batch, outcomes)
            finally:
                with self.engine.begin() as connection:
                    meter_ledger.settle(connection, outcomes, self.clock.now())
                report.count(batch, outcomes)
        with self.engine.connect() as connection:
            report.left = self._pending(connection, customer_id)


def _can_be_sent(entry: LedgerEntry, now: datetime) -> bool:
    """Whether sending it, once more perhaps, can neither be refused for its age nor count twice."""
    fresh = entry.first_sent_at is None or is_known_again(entry.first_sent_at, now)
    return fresh and not is_too_late(entry.slot_start, now)


def _window(entry: LedgerEntry) -> _Window:
    return _Window(entry.customer_id, entry.metric_type, minute_around(entry.slot_start)[0])
