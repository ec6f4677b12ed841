"""The resume file of one import: what was read from the file, and what the API has confirmed of it.

Belongs here: the SQLite file under `imports/` of the data folder. Events stand in it grouped by customer,
because a request carries one customer's events; so memory stays bounded whatever the file's size and order.
It holds no keys: each run issues its own and revokes them at its end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from apex_pipelines.importing.errors import ImportFailed
from apex_pipelines.importing.events import MappedRecord
from apex_pipelines.importing.readers import BadLine
from apex_pipelines.platform.ingest_client import EventResult

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCHEMA = """
create table meta (key text primary key, value text not null) without rowid;
create table records (digest blob primary key, seen integer not null) without rowid;
create table customers (
    number integer primary key, ref text not null unique, email text, first_event_us integer not null,
    events integer not null default 0, confirmed integer not null default 0,
    accepted integer not null default 0, duplicates integer not null default 0,
    rejected integer not null default 0
);
create table events (
    customer integer not null, position integer not null, line integer not null, payload blob not null,
    primary key (customer, position)
) without rowid;
create table rejects (
    line integer not null, position integer not null, reason text not null, content text not null
);
"""
_MAX_KEPT_CHARACTERS = 2_000


@dataclass(slots=True)
class ReadingCounts:
    """What reading the file found. Quantities in storage units, times in ISO 8601."""

    lines: int = 0
    records: int = 0
    bad_lines: int = 0
    customers: int = 0
    events: int = 0
    events_by_metric: dict[str, int] = field(default_factory=dict)
    quantity_by_metric: dict[str, int] = field(default_factory=dict)
    first_event_at: str | None = None
    last_event_at: str | None = None


class DeliveryCounts(NamedTuple):
    """What the API has answered so far, in events."""

    confirmed: int
    accepted: int
    duplicates: int
    rejected: int


class PendingCustomer(NamedTuple):
    """A customer of the file of whom events are still to be confirmed."""

    number: int
    ref: str
    email: str | None
    first_event_at: datetime
    confirmed: int


class StagedEvent(NamedTuple):
    """An event as it will be sent, with the line it came from."""

    position: int
    line: int
    payload: bytes


class ImportState:
    """The resume file, opened. Made by `open_state`; used from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self.resumed = self._meta("reading") is not None

    # Reading the file.

    @contextmanager
    def staging(self) -> Iterator[None]:
        """One transaction for reading the whole file: killed within it, reading starts over."""
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def occurrence(self, content: str) -> int:
        """How many records of this content there are so far, this one included."""
        digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
        row = self._db.execute(
            "insert into records values (?, 1) on conflict do update set seen = seen + 1 returning seen",
            (digest,),
        ).fetchone()
        return int(row[0])

    def stage(self, record: MappedRecord, line: int) -> None:
        """Keep a record's events for sending."""
        at = (record.at - _EPOCH) // timedelta(microseconds=1)
        number, end = self._db.execute(
            "insert into customers (ref, email, first_event_us, events) values (?, ?, ?, ?) "
            "on conflict (ref) do update set events = events + excluded.events, "
            "first_event_us = min(first_event_us, excluded.first_event_us), "
            "email = coalesce(email, excluded.email) "
            "returning number, events",
            (record.customer, record.email, at, len(record.events)),
        ).fetchone()
        first = end - len(record.events)
        self._db.executemany(
            "insert into events values (?, ?, ?, ?)",
            [
                (number, first + offset, line, msgspec.json.encode(mapped.event))
                for offset, mapped in enumerate(record.events)
            ],
        )

    def reject_line(self, bad: BadLine) -> None:
        """Keep a line that can't be imported."""
        self._db.execute(
            "insert into rejects values (?, -1, ?, ?)",
            (bad.line, bad.reason, bad.text[:_MAX_KEPT_CHARACTERS]),
        )

    def finish_reading(self, counts: ReadingCounts) -> None:
        """Record that the whole file has been read. Call it within `staging`."""
        row = self._db.execute("select count(*) from customers where events > 0").fetchone()
        counts.customers = int(row[0])
        self._db.execute("insert or replace into meta values ('reading', ?)", (json.dumps(asdict(counts)),))
        self._db.execute("delete from records")

    def reading_counts(self) -> ReadingCounts:
        """What `finish_reading` recorded."""
        return ReadingCounts(**json.loads(self._meta("reading") or "{}"))

    # Delivering.

    def pending(self, after: int, limit: int) -> list[PendingCustomer]:
        """Customers with events to confirm, by number, from the one after `after`."""
        rows = self._db.execute(
            "select number, ref, email, first_event_us, confirmed from customers "
            "where number > ? and confirmed < events order by number limit ?",
            (after, limit),
        )
        return [
            PendingCustomer(number, ref, email, _EPOCH + timedelta(microseconds=first), confirmed)
            for number, ref, email, first, confirmed in rows
        ]

    def events(self, customer: int, start: int, limit: int) -> list[StagedEvent]:
        """A customer's events from position `start` on."""
        rows = self._db.execute(
            "select position, line, payload from events where customer = ? and position >= ? "
            "order by position limit ?",
            (customer, start, limit),
        )
        return [StagedEvent(*row) for row in rows]

    def confirm(self, customer: int, sent: Sequence[StagedEvent], results: Sequence[EventResult]) -> None:
        """Record the API's answer to a batch; in one transaction: a kill leaves all or nothing."""
        statuses = [result.status for result in results]
        self._db.execute("begin immediate")
        try:
            self._db.execute(
                "update customers set confirmed = confirmed + ?, accepted = accepted + ?, "
                "duplicates = duplicates + ?, rejected = rejected + ? where number = ?",
                (
                    len(sent),
                    statuses.count("accepted"),
                    statuses.count("duplicate"),
                    statuses.count("rejected"),
                    customer,
                ),
            )
            self._db.executemany(
                "insert into rejects values (?, ?, ?, ?)",
                [
                    (
                        event.line,
                        event.position,
                        result.reason or "rejected by the API",
                        event.payload.decode(),
                    )
                    for event, result in zip(sent, results, strict=True)
                    if result.status == "rejected"
                ],
            )
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def delivery_counts(self) -> DeliveryCounts:
        """Sums over all customers."""
        row = self._db.execute(
            "select coalesce(sum(confirmed), 0), coalesce(sum(accepted), 0), coalesce(sum(duplicates), 0), "
            "coalesce(sum(rejected), 0) from customers"
        ).fetchone()
        return DeliveryCounts(*map(int, row))

    # The end.

    def write_rejected(self, path: Path) -> Path | None:
        """Write everything that was rejected as NDJSON; None, and no file, when nothing was."""
        rows = self._db.execute("select line, reason, content from rejects order by line, position")
        temporary = path.with_suffix(".part")
        count = 0
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            for line, reason, content in rows:
                file.write(msgspec.json.encode({"line": line, "reason": reason, "content": content}) + b"\n")
                count += 1
        if not count:
            temporary.unlink()
            path.unlink(missing_ok=True)
            return None
        temporary.replace(path)
        return path

    def forget(self) -> None:
        """Remove the resume file: the import is finished."""
        self._db.close()
        remove_state(self.path)
        self.path.with_suffix(".lock").unlink(missing_ok=True)

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("select value from meta where key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])


def remove_state(path: Path) -> None:
    """Remove a resume file with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def open_state(path: Path, *, resume: bool) -> Iterator[ImportState]:
    """Open the resume file at `path`, its owner's only; a fresh one if there is none or not `resume`.

    Raises
    ------
    ImportFailed
        If another process is importing the same file now.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImportFailed(
                "this file is being imported by another process; wait for it, or stop it"
            ) from error
        if not resume:
            remove_state(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            # Without a sync at each commit, a power cut can lose the last confirmations, not a kill; those
            # events are then sent again, which their ids make harmless.
            connection.executescript("pragma journal_mode = wal; pragma synchronous = normal;")
            if not connection.execute("select 1 from sqlite_master where name = 'meta'").fetchone():
                connection.executescript(f"begin; {_SCHEMA} commit;")
            yield ImportState(path, connection)
        finally:
            connection.close()
    finally:
        os.close(lock)
