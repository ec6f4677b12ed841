"""Stripe's events in the webhook inbox, each taken in by fetching again what it is about.

What holds
----------
* A batch is one transaction of the inbox. Its rows are locked with SKIP LOCKED, so several workers share the
  inbox and none waits for another. A killed worker leaves its batch pending; taking it in again changes
  nothing.
* An event is processed once what it is about is durable in the warehouse and mirrored.
* What fails is tried again with back-off, and rests as failed after the last attempt: `apex stripe inbox`
  shows it, `--retry` tries again. While Stripe can't be reached nothing is given up.

Belongs here: the order of these steps, and rows of the inbox.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa
import stripe

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.stripe.changes import Changes, Failure
from apex_pipelines.stripe.event_payloads import StripeEvent, UnreadableEvent, read_event
from apex_pipelines.stripe.meter_errors import read_report, record_meter_error
from apex_pipelines.stripe.mirror import Key
from apex_pipelines.stripe.reading import TRANSIENT, Reader
from apex_pipelines.webhooks.models import WebhookEvent, WebhookOutcome

log = get_logger(__name__)
BATCH = 100
MAX_ATTEMPTS = 8
# After the first failure; each further one doubles it, up to the longest.
FIRST_BACK_OFF = timedelta(minutes=1)
LONGEST_BACK_OFF = timedelta(hours=6)
UNKNOWN_TYPE = "unknown type"

_MINE = sa.and_(WebhookEvent.provider == "stripe", WebhookEvent.processed_at.is_(None))


class NoSuchWebhook(LookupError):
    """The inbox has no such event of Stripe."""


@dataclass(slots=True)
class InboxReport:
    """What one drain did, in events; `failures` are the messages of what rests as failed now."""

    done: int = 0
    ignored: int = 0
    retrying: int = 0
    failed: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.done + self.ignored + self.retrying + self.failed


@dataclass(frozen=True, slots=True)
class _Claimed:
    row_id: int
    event_id: str
    event_type: str
    payload: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of one row; no outcome: it is tried again."""

    outcome: WebhookOutcome | None
    message: str | None = None
    not_before: datetime | None = None


def count_due(connection: sa.Connection, now: datetime) -> int:
    """Events of Stripe that wait for being taken in now."""
    count = sa.select(sa.func.count()).select_from(WebhookEvent).where(_MINE, _is_due(now))
    return connection.execute(count).scalar_one()


def drain_inbox(engine: sa.Engine, reader: Reader, changes: Changes) -> InboxReport:
    """Take in what is due, batch by batch, until nothing is; safe to run several times at once.

    Raises
    ------
    stripe.AuthenticationError
        If the key is not valid (any more); what is not taken in stays pending.
    """
    worker = _Worker(engine, reader, changes)
    while worker.drain_batch():
        pass
    report = worker.report
    if report.total:
        log.info(
            "stripe inbox drained",
            done=report.done, ignored=report.ignored, retrying=report.retrying, failed=report.failed,
        )  # fmt: skip
    return report


def count_failed(engine: sa.Engine) -> int:
    """Events of Stripe that rest as failed."""
    count = (
        sa.select(sa.func.count())
        .select_from(WebhookEvent)
        .where(WebhookEvent.provider == "stripe", WebhookEvent.outcome == WebhookOutcome.FAILED)
    )
    with engine.connect() as connection:
        return connection.execute(count).scalar_one()


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that is not taken in: `state` is pending or failed."""

    id: int
    event_id: str
    event_type: str
    received_at: datetime
    state: str
    attempts: int
    not_before: datetime | None
    error_message: str | None


def list_waiting(engine: sa.Engine, *, limit: int) -> list[WaitingEvent]:
    """Events of Stripe that are pending or rest as failed, the newest first."""
    failed = WebhookEvent.outcome == WebhookOutcome.FAILED
    query = (
        sa.select(
            WebhookEvent.id,
            WebhookEvent.event_id,
            WebhookEvent.event_type,
            WebhookEvent.received_at,
            sa.case((failed, "failed"), else_="pending").label("state"),
            WebhookEvent.attempts,
            WebhookEvent.not_before,
            WebhookEvent.error_message,
        )
        .where(WebhookEvent.provider == "stripe", sa.or_(failed, WebhookEvent.processed_at.is_(None)))
        .order_by(WebhookEvent.id.desc())
        .limit(limit)
    )
    with engine.connect() as connection:
        return [WaitingEvent(**row._mapping) for row in connection.execute(query)]


def retry_webhooks(engine: sa.Engine, now: datetime, *, row_id: int | None = None) -> int:
    """Make an event pending again, or all that rest as failed; how many.

    Raises
    ------
    NoSuchWebhook
        If there is no event of Stripe with this number.
    """
    chosen = WebhookEvent.outcome == WebhookOutcome.FAILED if row_id is None else WebhookEvent.id == row_id
    with engine.begin() as connection:
        changed = connection.execute(
            sa.update(WebhookEvent)
            .where(WebhookEvent.provider == "stripe", chosen)
            .values(processed_at=None, outcome=None, attempts=0, not_before=now)
        ).rowcount
    if row_id is not None and not changed:
        raise NoSuchWebhook(f"the inbox has no event {row_id} of Stripe; `apex stripe inbox` lists them")
    return changed


def _is_due(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(WebhookEvent.not_before.is_(None), WebhookEvent.not_before <= now)


class _Worker:
    def __init__(self, engine: sa.Engine, reader: Reader, changes: Changes) -> None:
        self._engine = engine
        self._reader = reader
        self._changes = changes
        self._told_of: set[str] = set()
        self.report = InboxReport()

    def drain_batch(self) -> bool:
        """One transaction; False when nothing was due."""
        with self._engine.begin() as connection:
            now = self._reader.clock.now()
            claimed = list(_claim(connection, now))
            if not claimed:
                return False
            verdicts = self._verdicts(connection, claimed, now)
            _record(connection, claimed, verdicts, now)
        self._count(claimed, verdicts)
        return True

    def _verdicts(
        self, connection: sa.Connection, claimed: Sequence[_Claimed], now: datetime
    ) -> dict[int, _Verdict]:
        verdicts: dict[int, _Verdict] = {}
        keys: dict[int, Key] = {}
        changed: dict[Key, datetime | None] = {}
        for row in claimed:
            read = self._read(row)
            if isinstance(read, _Verdict):
                verdicts[row.row_id] = read
            elif read.is_meter_error:
                verdicts[row.row_id] = self._take_meter_errors(connection, row, read, now)
            elif read.kind is not None:
                key = keys[row.row_id] = (read.kind.name, read.object_id)
                dates = [at for at in (changed.get(key), read.dated_at) if at is not None]
                changed[key] = max(dates, default=None)
        failures = self._changes.take_in(changed)
        for row in claimed:
            if row.row_id in keys:
                failure = failures.get(keys[row.row_id])
                verdicts[row.row_id] = (
                    _Verdict(WebhookOutcome.DONE) if failure is None else _postponed(row, failure, now)
                )
        for name, _ in changed.keys() - failures.keys():
            self.report.objects[name] = self.report.objects.get(name, 0) + 1
        return verdicts

    def _read(self, row: _Claimed) -> StripeEvent | _Verdict:
        try:
            event = read_event(row.payload)
        except UnreadableEvent as error:
            return _Verdict(WebhookOutcome.FAILED, f"it is no event that can be read: {error}")
        if event.livemode is not self._reader.livemode:
            mode = "live" if event.livemode else "test"
            return _Verdict(WebhookOutcome.FAILED, f"it is of the {mode} mode and the key is of the other")
        if event.kind is None and not event.is_meter_error:
            if event.type not in self._told_of:
                self._told_of.add(event.type)
                log.info("stripe event of no use", type=event.type, reason=UNKNOWN_TYPE)
            return _Verdict(WebhookOutcome.IGNORED, UNKNOWN_TYPE)
        return event

    def _take_meter_errors(
        self, connection: sa.Connection, row: _Claimed, event: StripeEvent, now: datetime
    ) -> _Verdict:
        """The event itself is thin: what it has to say is asked for."""
        try:
            report = read_report(self._reader.document(f"/v2/core/events/{event.id}"))
        except stripe.AuthenticationError:
            raise
        except TRANSIENT as error:
            return _postponed(row, Failure(f"Stripe: {error}", is_transient=True), now)
        except (stripe.StripeError, msgspec.MsgspecError) as error:
            return _postponed(row, Failure(f"Stripe: {error}", is_transient=False), now)
        for told in report:
            if not record_meter_error(connection, told, now, livemode=self._reader.livemode):
                log.warning("meter error of no entry of ours", identifier=told.identifier, code=told.code)
        return _Verdict(WebhookOutcome.DONE)

    def _count(self, claimed: Sequence[_Claimed], verdicts: dict[int, _Verdict]) -> None:
        for row in claimed:
            verdict = verdicts[row.row_id]
            name = "retrying" if verdict.outcome is None else verdict.outcome.value
            setattr(self.report, name, getattr(self.report, name) + 1)
            if verdict.outcome is WebhookOutcome.FAILED:
                self.report.failures.append(f"event {row.row_id} ({row.event_type}): {verdict.message}")
                log.error("stripe event failed", id=row.row_id, type=row.event_type, reason=verdict.message)


def _claim(connection: sa.Connection, now: datetime) -> Iterator[_Claimed]:
    select = (
        sa.select(
            WebhookEvent.id,
            WebhookEvent.event_id,
            WebhookEvent.event_type,
            WebhookEvent.payload,
            WebhookEvent.attempts,
        )
        .where(_MINE, _is_due(now))
        .order_by(WebhookEvent.id)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    for row in connection.execute(select):
        yield _Claimed(row.id, row.event_id, row.event_type, bytes(row.payload), row.attempts)


def _postponed(row: _Claimed, failure: Failure, now: datetime) -> _Verdict:
    if not failure.is_transient and row.attempts + 1 >= MAX_ATTEMPTS:
        return _Verdict(WebhookOutcome.FAILED, failure.message)
    # Of many failures the wait is the longest one, and the power must not overflow.
    wait = min(FIRST_BACK_OFF * 2 ** min(row.attempts, 20), LONGEST_BACK_OFF)
    return _Verdict(None, failure.message, now + wait)


def _record(
    connection: sa.Connection, claimed: Sequence[_Claimed], verdicts: dict[int, _Verdict], now: datetime
) -> None:
    update = (
        sa.update(WebhookEvent.__table__)  # type: ignore[arg-type]  # typed as FromClause by the ORM
        .where(WebhookEvent.id == sa.bindparam("key"))
        .values(
            processed_at=sa.bindparam("processed"),
            outcome=sa.bindparam("became"),
            attempts=sa.bindparam("tried"),
            not_before=sa.bindparam("next"),
            error_message=sa.bindparam("message"),
        )
    )
    rows = []
    for row in claimed:
        verdict = verdicts[row.row_id]
        rows.append(
            {
                "key": row.row_id,
                "processed": None if verdict.outcome is None else now,
                "became": verdict.outcome and verdict.outcome.value,
                "tried": row.attempts
                + (verdict.message is not None and verdict.outcome is not WebhookOutcome.IGNORED),
                "next": verdict.not_before,
                "message": verdict.message,
            }
        )
    connection.execute(update, rows)
