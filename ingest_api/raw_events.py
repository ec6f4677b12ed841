"""`raw.usage_events` as the loader sees it: what is there, what is missing, putting it there.

Belongs here: SQL and column order of the raw tables, and which errors mean that a row itself is bad.
Does not belong here: segments on disk, and when to try again (`loader`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, DataError

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings
from ingest_api.spool.segments import begun_at_ms

log = get_logger(__name__)

_COLUMNS = {
    "customer_id": "String",
    "event_id": "String",
    "metric_type": "LowCardinality(String)",
    "quantity": "Int64",
    "event_time": "DateTime64(3, 'UTC')",
    "accepted_at": "DateTime64(6, 'UTC')",
    "metadata": "String",
    "corrects_event_id": "String",
    "correction_reason": "String",
    "batch_id": "LowCardinality(String)",
    "batch_row": "UInt32",
}
# Server errors that say that a value can't be stored. Everything else is taken for a passing trouble: it is
# better to try for ever than to give up rows because a disk was full.
_BAD_VALUE_CODES = frozenset({6, 27, 53, 69, 70, 72, 117, 131, 321, 349, 407, 501})
# A look-up reads only what was loaded since then: the table is sorted by the time of loading, and a row can't
# have been loaded before its segment was begun. The margins cover clocks that differ, and clocks that were
# set right between an insert and the look-up.
_ANY_TIME_MARGIN_SECONDS = 2 * 86_400
_JUST_NOW_MARGIN_SECONDS = 600
_FAR_FUTURE_MS = 4_000_000_000_000

_COUNTS = """
select batch_id, count(), uniqExact(batch_row)
from raw.usage_events
where batch_id in {batch_ids:Array(String)}
  and loaded_at >= least(fromUnixTimestamp64Milli({begun_ms:Int64}, 'UTC'), now64(3, 'UTC'))
    - toIntervalSecond({margin:UInt32})
group by batch_id
"""
_ROWS = """
select distinct batch_row
from raw.usage_events
where batch_id = {batch_id:String}
  and loaded_at >= least(fromUnixTimestamp64Milli({begun_ms:Int64}, 'UTC'), now64(3, 'UTC'))
    - toIntervalSecond({margin:UInt32})
"""
_RUNNING_INSERTS = """
select count()
from system.processes
where query_kind = 'Insert' and Settings['log_comment'] = {origin:String}
"""
_DEAD_ROWS = """
select batch_id, batch_row
from raw.usage_dead_letters
where batch_id in {batch_ids:Array(String)}
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one segment: ``events[i]`` is row ``rows[i]`` of `batch_id`."""

    batch_id: str
    rows: Sequence[int]
    events: Sequence[AcceptedEvent]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the table has of one batch: all its rows, and how many different ones."""

    rows: int
    distinct: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row, or a whole frame from that row on, that can't be loaded."""

    batch_id: str
    batch_row: int
    payload: str
    reason: str

    @classmethod
    def of_event(cls, batch_id: str, batch_row: int, event: AcceptedEvent, reason: str) -> DeadLetter:
        """The letter of an event that the table refuses; its payload is a JSON array."""
        return cls(batch_id, batch_row, msgspec.json.encode(event).decode(), reason)

    @classmethod
    def of_bytes(cls, batch_id: str, batch_row: int, payload: bytes, reason: str) -> DeadLetter:
        """The letter of a frame that can't be decoded; its payload is kept as base64."""
        return cls(batch_id, batch_row, f"base64:{base64.b64encode(payload).decode()}", reason)


def is_bad_value(error: Exception) -> bool:
    """Whether `error` says that a row itself can't be stored, so that trying again would not help."""
    if isinstance(error, DataError | UnicodeError | OverflowError):
        return True
    return isinstance(error, DatabaseError) and error.code in _BAD_VALUE_CODES


class RawEvents:
    """The raw tables, over one client that is made when needed.

    Parameters
    ----------
    origin : str
        Names this loader in the server's list of running queries.
    """

    def __init__(self, settings: Settings, origin: str) -> None:
        self._settings = settings
        self._origin = origin
        self._connected: Client | None = None

    @property
    def _client(self) -> Client:
        if self._connected is None:
            self._connected = clickhouse.connect(
                self._settings, query_origin=self._origin, timeout_seconds=120
            )
        return self._connected

    def disconnect(self) -> None:
        """Drop the client; the next call makes a new one."""
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def running_inserts(self) -> int:
        """Inserts of ours that still run, such as one whose loader was killed: it may yet succeed."""
        result = self._client.query(_RUNNING_INSERTS, parameters={"origin": self._origin})
        return int(result.result_rows[0][0])

    def stored(self, batch_ids: Sequence[str], *, just_now: bool) -> dict[str, Stored]:
        """What is there of each batch; those of which nothing is there are absent.

        Parameters
        ----------
        just_now : bool
            All that is there was inserted a moment ago, so that minutes of the table are enough to look at.
        """
        parameters = {"batch_ids": list(batch_ids), **_loaded_since(batch_ids, just_now=just_now)}
        rows = self._client.query(_COUNTS, parameters=parameters).result_rows
        return {batch_id: Stored(count, distinct) for batch_id, count, distinct in rows}

    def stored_rows(self, batch_id: str) -> frozenset[int]:
        """Which rows of one batch are there."""
        parameters = {"batch_id": batch_id, **_loaded_since([batch_id], just_now=False)}
        return frozenset(row for (row,) in self._client.query(_ROWS, parameters=parameters).result_rows)

    def insert(self, batches: Sequence[Batch]) -> None:
        """Insert all rows in one block, which lands whole or not at all."""
        events = [event for batch in batches for event in batch.events]
        columns: list[Sequence[object]] = [
            [event.customer_id for event in events],
            [event.event_id for event in events],
            [event.metric_type for event in events],
            [event.quantity for event in events],
            [event.event_time_ms for event in events],
            [event.accepted_at_us for event in events],
            [event.metadata for event in events],
            [event.corrects_event_id for event in events],
            [event.correction_reason for event in events],
            [batch.batch_id for batch in batches for _ in batch.rows],
            [row for batch in batches for row in batch.rows],
        ]
        # Native columns took as long as Arrow here (100,000 rows in 0.1 s) and need no conversion of times.
        self._client.insert(
            "usage_events",
            columns,
            column_names=list(_COLUMNS),
            column_type_names=list(_COLUMNS.values()),
            database="raw",
            column_oriented=True,
            settings=clickhouse.DURABLE_INSERT,
        )

    def bury(self, letters: Iterable[DeadLetter]) -> None:
        """Keep rows that can't be loaded, each once, with the reason."""
        letters = list(letters)
        parameters = {"batch_ids": sorted({letter.batch_id for letter in letters})}
        there = {tuple(row) for row in self._client.query(_DEAD_ROWS, parameters=parameters).result_rows}
        rows = [
            [letter.batch_id, letter.batch_row, letter.payload, letter.reason]
            for letter in letters
            if (letter.batch_id, letter.batch_row) not in there
        ]
        for letter in letters:
            log.error(
                "event can't be loaded; kept in raw.usage_dead_letters",
                batch_id=letter.batch_id,
                batch_row=letter.batch_row,
                reason=letter.reason,
            )
        if rows:
            names = ["batch_id", "batch_row", "payload", "reason"]
            self._client.insert(
                "usage_dead_letters", rows, column_names=names, database="raw",
                settings=clickhouse.DURABLE_INSERT,
            )  # fmt: skip


def _loaded_since(batch_ids: Sequence[str], *, just_now: bool) -> dict[str, int]:
    """Parameters that bound a look-up in time; the server takes its own now when that is earlier."""
    if just_now:
        return {"begun_ms": _FAR_FUTURE_MS, "margin": _JUST_NOW_MARGIN_SECONDS}
    # A foreign name tells no time: then the whole table is looked at.
    begun = min(begun_at_ms(batch_id) or _ANY_TIME_MARGIN_SECONDS * 1000 for batch_id in batch_ids)
    return {"begun_ms": begun, "margin": _ANY_TIME_MARGIN_SECONDS}
