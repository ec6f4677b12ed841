"""One customer's use by day, each event once, with what was loaded a moment ago.

Belongs here: the queries that join what the models have counted with what they have not. Does not belong
here: periods, limits, HTTP.

Three sources, and each event from exactly one of them:

1. `marts.usage_daily` for whole days but those reopened since, while no run of it is under way;
2. `intermediate.int_usage_events` for those days and for days that the range cuts;
3. `raw.usage_events` behind the models' mark, but for events that stand in 2.

Why this is exact whenever it is asked. A row of 2 counts for ever, so what 3 has of it is left out by its id,
on whatever day it stands, and within 3 the first arrival wins, as in the model. One query reads 2 and 3 from
one snapshot of each, so nothing moves from 3 to 2 meanwhile. A mark that is old by some seconds only makes 3
read more. Of 1, a day is used only if 2 has nothing for it that came after the run that 1 stands at; and the
marks of 1, known before, are told again by the query itself: had a run begun between, its replacement of days
could have been seen half-way, and the question is asked again of 2 and 3 alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import msgspec

from apex_pipelines.metering.events import microseconds
from ingest_api.warehouse_reader import Parameter, TableMissing, WarehouseReader

# How long a frontier is used for all customers. Bounds how late a row is seen that turned up behind the mark,
# never how late a new one is.
_FRONTIER_SECONDS = 1.0
_LATE_ROWS_US = 3_600_000_000  # as macros/watermarks.sql: rows may turn up this far behind the mark

_TABLES = """
select database || '.' || name
from system.tables
where (database, name) in (
    ('intermediate', 'model_watermarks'), ('intermediate', 'int_usage_events'), ('marts', 'usage_daily')
)
"""
_MARKS = """
select (
    toUnixTimestamp64Micro(argMaxIf(watermark, recorded_at, model = 'int_usage_events' and state = 'stored')),
    argMaxIf(rows_before, recorded_at, model = 'int_usage_events' and state = 'stored'),
    toUnixTimestamp64Micro(argMaxIf(watermark, recorded_at, model = 'usage_daily' and state = 'begun')),
    toUnixTimestamp64Micro(maxIf(recorded_at, model = 'usage_daily' and state = 'begun')),
    toUnixTimestamp64Micro(argMaxIf(watermark, recorded_at, model = 'usage_daily' and state = 'stored')),
    toUnixTimestamp64Micro(maxIf(recorded_at, model = 'usage_daily' and state = 'stored'))
)
from intermediate.model_watermarks
where model in ('int_usage_events', 'usage_daily')
"""
_ROWS_BEFORE_MARK = """
select count()
from raw.usage_events
where loaded_at > fromUnixTimestamp64Micro({mark:Int64} - {late:Int64}, 'UTC')
    and loaded_at <= fromUnixTimestamp64Micro({mark:Int64}, 'UTC')
"""

_FROM_FRESH = """
    select toDate(event.3, 'UTC') as usage_date, event.1 as metric_type, event.2 as quantity
    from (
        select
            event_id,
            argMin(
                (toString(metric_type), quantity, event_time),
                (loaded_at, accepted_at, batch_id, batch_row)
            ) as event
        from raw.usage_events
        where loaded_at > fromUnixTimestamp64Micro({{read_from:Int64}}, 'UTC')
            and customer_id = {{customer:String}}
            {not_stored}
        group by event_id
    )
    where event.3 >= fromUnixTimestamp64Micro({{start:Int64}}, 'UTC')
        and event.3 < fromUnixTimestamp64Micro({{end:Int64}}, 'UTC')
"""
# Every day is searched: a repeat may claim another one.
_NOT_STORED = """
            and event_id not in (
                select event_id
                from intermediate.int_usage_events
                where customer_id = {customer:String} and event_key in (
                    select sipHash64(customer_id, event_id)
                    from raw.usage_events
                    where loaded_at > fromUnixTimestamp64Micro({read_from:Int64}, 'UTC')
                        and customer_id = {customer:String}
                )
            )
"""
_REOPENED = """
with
    reopened as (
        select distinct usage_date
        from intermediate.int_usage_events
        where customer_id = {customer:String}
            and usage_date between {first:Date} and {last:Date}
            and processed_at > fromUnixTimestamp64Micro({counted_until:Int64}, 'UTC')
    )
"""
_FROM_EVENTS = """
    union all
    select usage_date, toString(metric_type) as metric_type, quantity
    from intermediate.int_usage_events
    where customer_id = {customer:String}
        and usage_date between {first:Date} and {last:Date}
        and event_time >= fromUnixTimestamp64Micro({start:Int64}, 'UTC')
        and event_time < fromUnixTimestamp64Micro({end:Int64}, 'UTC')
"""
_ON_DAYS_NOT_TAKEN_FROM_DAILY = """
        and (has({cut_days:Array(Date)}, usage_date) or usage_date in (select usage_date from reopened))
"""
_FROM_DAILY = """
    union all
    select usage_date, toString(metric_type) as metric_type, quantity
    from marts.usage_daily
    where customer_id = {customer:String}
        and usage_date between {first:Date} and {last:Date}
        and not has({cut_days:Array(Date)}, usage_date)
        and usage_date not in (select usage_date from reopened)
"""
_SUMMED = """
select usage_date, metric_type, sum(quantity) {also}
from (
{parts}
)
where metric_type in {{metrics:Array(String)}}
group by usage_date, metric_type
settings enable_shared_storage_snapshot_in_query = 1
"""
_RAW_ONLY = _SUMMED.format(also="", parts=_FROM_FRESH.format(not_stored=""))
_WITH_EVENTS = _SUMMED.format(also="", parts=_FROM_FRESH.format(not_stored=_NOT_STORED) + _FROM_EVENTS)
_WITH_DAILY = _REOPENED + _SUMMED.format(
    also=f", ({_MARKS})",
    parts=_FROM_FRESH.format(not_stored=_NOT_STORED)
    + _FROM_EVENTS
    + _ON_DAYS_NOT_TAKEN_FROM_DAILY
    + _FROM_DAILY,
)


class _Name(msgspec.Struct, array_like=True):
    name: str


class _Count(msgspec.Struct, array_like=True):
    rows: int


class _Marks(msgspec.Struct, array_like=True, frozen=True):
    """Microseconds since 1970; 0 where a model has no mark yet."""

    loaded_until: int
    rows_before: int
    daily_begun: int
    daily_begun_at: int
    daily_stored: int
    daily_stored_at: int

    @property
    def daily_is_at_rest(self) -> bool:
        """Whether the newest run of `usage_daily` has ended well, so that its figures stand at one mark."""
        return 0 < self.daily_begun == self.daily_stored and self.daily_begun_at < self.daily_stored_at


class _OneMarks(msgspec.Struct, array_like=True):
    marks: _Marks


class _DayRow(msgspec.Struct, array_like=True):
    day: date
    metric_type: str
    quantity: int
    marks: _Marks | None = None


@dataclass(frozen=True, slots=True)
class _Frontier:
    """How far the models have come, as read at `read_at` (monotonic seconds)."""

    read_at: float
    has_events: bool
    has_daily: bool
    marks: _Marks | None
    read_from: int

    @property
    def daily_marks(self) -> _Marks | None:
        """The marks at which the daily figures stand; None when these can't be used."""
        marks = self.marks
        usable = self.has_events and self.has_daily and marks is not None and marks.daily_is_at_rest
        return marks if usable else None


class CountedUsage:
    """Use by customer and day, asked of the warehouse.

    Parameters
    ----------
    metrics : sequence of str
        The metrics to sum; others are not answered.
    """

    def __init__(self, warehouse: WarehouseReader, metrics: Sequence[str]) -> None:
        self._warehouse = warehouse
        self._metrics = list(metrics)
        self._frontier: _Frontier | None = None

    async def by_day(self, customer_id: str, start: datetime, end: datetime) -> dict[str, dict[date, int]]:
        """Use with an event time of ``start <= t < end``: by metric, then by UTC day, in storage units.

        Raises
        ------
        WarehouseUnavailable
            If ClickHouse does not answer.
        """
        try:
            rows = await self._rows(customer_id, start, end, await self._current_frontier())
        except TableMissing:
            # Dropped or renamed since the frontier was read: once more, on what is there now.
            self._frontier = None
            rows = await self._rows(customer_id, start, end, await self._current_frontier())
        use: dict[str, dict[date, int]] = {metric: {} for metric in self._metrics}
        for row in rows:
            use[row.metric_type][row.day] = row.quantity
        return use

    async def _rows(
        self, customer_id: str, start: datetime, end: datetime, frontier: _Frontier
    ) -> list[_DayRow]:
        first, last = _day(start), _day(end - timedelta(microseconds=1))
        cut_days = {day for day, instant in ((first, start), (_day(end), end)) if not _is_midnight(instant)}
        parameters: dict[str, Parameter] = {
            "customer": customer_id,
            "metrics": self._metrics,
            "read_from": frontier.read_from,
            "start": microseconds(start),
            "end": microseconds(end),
        }
        if not frontier.has_events:
            return await self._warehouse.rows(_RAW_ONLY, parameters, _DayRow)
        parameters |= {"first": first.isoformat(), "last": last.isoformat()}
        for _ in range(2):  # a run may have ended since the marks were read; then once more with the new ones
            marks = frontier.daily_marks
            if marks is None:
                break
            daily_parameters = parameters | {
                "read_from": frontier.read_from,
                "counted_until": marks.daily_stored,
                "cut_days": sorted(day.isoformat() for day in cut_days),
            }
            rows = await self._warehouse.rows(_WITH_DAILY, daily_parameters, _DayRow)
            if (rows[0].marks if rows else await self._marks()) == marks:
                return rows
            self._frontier = None
            frontier = await self._current_frontier()
        return await self._warehouse.rows(_WITH_EVENTS, parameters, _DayRow)

    async def _current_frontier(self) -> _Frontier:
        kept = self._frontier
        now = time.monotonic()
        if kept is not None and now - kept.read_at < _FRONTIER_SECONDS:
            return kept
        if kept is not None and kept.daily_marks is not None:
            # Marks that are used with the daily figures are compared afterwards anyway.
            read_from = await self._read_from(kept.marks)
            self._frontier = replace(kept, read_at=now, read_from=read_from)
            return self._frontier
        tables = {row.name for row in await self._warehouse.rows(_TABLES, {}, _Name)}
        has_events = "intermediate.int_usage_events" in tables
        # A mark without the rows that it vouches for would hide all that came before it.
        has_marks = has_events and "intermediate.model_watermarks" in tables
        marks = await self._marks() if has_marks else None
        self._frontier = _Frontier(
            read_at=now,
            has_events=has_events,
            has_daily="marts.usage_daily" in tables,
            marks=marks,
            read_from=await self._read_from(marks),
        )
        return self._frontier

    async def _marks(self) -> _Marks:
        (row,) = await self._warehouse.rows(_MARKS, {}, _OneMarks)
        return row.marks

    async def _read_from(self, marks: _Marks | None) -> int:
        """The time of loading behind which rows may wait, as in the macro `usage_events_read_until`."""
        if marks is None or not marks.loaded_until:
            return 0
        parameters = {"mark": marks.loaded_until, "late": _LATE_ROWS_US}
        (count,) = await self._warehouse.rows(_ROWS_BEFORE_MARK, parameters, _Count)
        late = 0 if count.rows == marks.rows_before else _LATE_ROWS_US
        return max(marks.loaded_until - late, 0)


def _day(instant: datetime) -> date:
    return instant.astimezone(UTC).date()


def _is_midnight(instant: datetime) -> bool:
    utc = instant.astimezone(UTC)
    return utc == utc.replace(hour=0, minute=0, second=0, microsecond=0)
