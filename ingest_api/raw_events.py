"""`raw.usage_events` as the loader sees it: what is there, what is missing, putting it there.

Belongs here: SQL and column order of that table, and which errors mean that a row itself is bad.
Does not belong here: segments on disk, when to try again (`loader`), rows that can't be loaded
(`dead_letters`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, DataError

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.clock import SystemClock
from apex_pipelines.settings import Settings
from ingest_api.spool.segments import begun_at_ms

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
    "historical": "UInt8",
    "batch_id": "LowCardinality(String)",
    "batch_row": "UInt32",
    "loaded_at": "DateTime64(6, 'UTC')",
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
select batch_id, groupUniqArray(batch_row)
from raw.usage_events
where batch_id in {batch_ids:Array(String)}
  and loaded_at >= least(fromUnixTimestamp64Milli({begun_ms:Int64}, 'UTC'), now64(3, 'UTC'))
    - toIntervalSecond({margin:UInt32})
group by batch_id
"""
# Models read what was loaded after what they have read, so this time must not go back when the server's
# clock does: rows would stay behind their mark for ever.
_LOADING_TIME = """
select toUnixTimestamp64Micro(now64(6, 'UTC')), toUnixTimestamp64Micro(max(loaded_at))
from raw.usage_events
"""
_ASK_TIME_SECONDS = 1.0
# Two clocks that differ by more since they were read: the machine slept, or one of them was set.
_CLOCKS_DIFFER_SECONDS = 0.1
_RUNNING_INSERTS = """
select count()
from system.processes
where query_kind = 'Insert' and Settings['log_comment'] = {origin:String}
"""
# A look-up names its batches in one parameter, of which a server takes 128 KiB.
_MAX_NAMES_CHARACTERS = 100_000
# An insert becomes one part: its blocks are put together up to these sizes, which it stays below.
_ONE_BLOCK = {"min_insert_block_size_rows": 1 << 24, "min_insert_block_size_bytes": 1 << 30}


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


def is_bad_value(error: Exception) -> bool:
    """Whether `error` says that a row itself can't be stored, so that trying again would not help."""
    if isinstance(error, DataError | UnicodeError | OverflowError):
        return True
    return isinstance(error, DatabaseError) and error.code in _BAD_VALUE_CODES


class RawEvents:
    """The raw table, over one client that is made when needed.

    Parameters
    ----------
    origin : str
        Names this loader in the server's list of running queries.
    monotonic : callable
        Seconds that no one can set; they may stand while the machine sleeps.
    """

    def __init__(
        self, settings: Settings, origin: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._monotonic = monotonic
        self._clock = SystemClock()
        self._connected: Client | None = None
        # Microseconds since 1970, both by the server's clock: the newest row, and when it was asked.
        self._loaded_at = 0
        self._server_time = 0
        # Seconds of both clocks here at that moment.
        self._asked_at = -math.inf
        self._asked_at_wall = 0.0

    @property
    def client(self) -> Client:
        """The client, made when there is none."""
        if self._connected is None:
            self._connected = clickhouse.connect(
                self._settings, query_origin=self._origin, timeout_seconds=120
            )
        return self._connected

    def disconnect(self) -> None:
        """Drop the client; the next call makes a new one."""
        self._asked_at = -math.inf
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def _loading_time(self) -> int:
        """Microseconds since 1970 by the server's clock, later than all that is loaded.

        Asked about once a second; in between it is counted on, which many small inserts are glad of. Where
        rows are ahead of the server's clock it goes on by single microseconds, so that the clock catches up.
        """
        now, wall = self._monotonic(), self._clock.now().timestamp()
        passed = now - self._asked_at
        clocks_differ = abs(wall - self._asked_at_wall - passed) > _CLOCKS_DIFFER_SECONDS
        if passed > _ASK_TIME_SECONDS or clocks_differ:
            ((self._server_time, newest),) = self.client.query(_LOADING_TIME).result_rows
            self._loaded_at = max(self._loaded_at, newest)
            self._asked_at, self._asked_at_wall, passed = now, wall, 0.0
        self._loaded_at = max(self._server_time + int(passed * 1_000_000), self._loaded_at + 1)
        return self._loaded_at

    def running_inserts(self) -> int:
        """Inserts of ours that still run, such as one whose loader was killed: it may yet succeed."""
        result = self.client.query(_RUNNING_INSERTS, parameters={"origin": self._origin})
        return int(result.result_rows[0][0])

    def stored(self, batch_ids: Sequence[str], *, just_now: bool) -> dict[str, Stored]:
        """What is there of each batch; those of which nothing is there are absent.

        Parameters
        ----------
        just_now : bool
            All that is there was inserted a moment ago, so that minutes of the table are enough to look at.
        """
        found: dict[str, Stored] = {}
        for names in _in_parts(batch_ids):
            parameters = {"batch_ids": names, **_loaded_since(names, just_now=just_now)}
            rows = self.client.query(_COUNTS, parameters=parameters).result_rows
            found.update((batch_id, Stored(count, distinct)) for batch_id, count, distinct in rows)
        return found

    def stored_rows(self, batch_ids: Sequence[str]) -> dict[str, frozenset[int]]:
        """Which rows of each batch are there; batches of which nothing is there are absent."""
        found: dict[str, frozenset[int]] = {}
        for names in _in_parts(batch_ids):
            parameters = {"batch_ids": names, **_loaded_since(names, just_now=False)}
            rows = self.client.query(_ROWS, parameters=parameters).result_rows
            found.update((batch_id, frozenset(numbers)) for batch_id, numbers in rows)
        return found

    def insert(self, batches: Sequence[Batch]) -> None:
        """Insert all rows, as one part as far as the server's own limits allow.

        Whoever is killed meanwhile must look up what is there: nothing here relies on all or nothing.
        """
        events = [event for batch in batches for event in batch.events]
        loaded_at = self._loading_time()
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
            [event.historical for event in events],
            [batch.batch_id for batch in batches for _ in batch.rows],
            [row for batch in batches for row in batch.rows],
            [loaded_at] * len(events),
        ]
        # Native columns took as long as Arrow here (100,000 rows in 0.1 s) and need no conversion of times.
        self.client.insert(
            "usage_events",
            columns,
            column_names=list(_COLUMNS),
            column_type_names=list(_COLUMNS.values()),
            database="raw",
            column_oriented=True,
            settings={**clickhouse.DURABLE_INSERT, **_ONE_BLOCK},
        )


def _loaded_since(batch_ids: Sequence[str], *, just_now: bool) -> dict[str, int]:
    """Parameters that bound a look-up in time; the server takes its own now when that is earlier."""
    if just_now:
        return {"begun_ms": _FAR_FUTURE_MS, "margin": _JUST_NOW_MARGIN_SECONDS}
    # A foreign name tells no time: then the whole table is looked at.
    begun = min(begun_at_ms(batch_id) or _ANY_TIME_MARGIN_SECONDS * 1000 for batch_id in batch_ids)
    return {"begun_ms": begun, "margin": _ANY_TIME_MARGIN_SECONDS}


def _in_parts(batch_ids: Sequence[str]) -> Iterator[list[str]]:
    """The names in lists that one query can carry."""
    part: list[str] = []
    size = 0
    for batch_id in batch_ids:
        size += len(batch_id) + 3  # quotes and a comma
        if part and size > _MAX_NAMES_CHARACTERS:
            yield part
            part, size = [], len(batch_id) + 3
        part.append(batch_id)
    if part:
        yield part
