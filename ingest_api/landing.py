"""Putting rows into `raw.usage_events`, each once: what is missing is inserted, what is refused is told.

Belongs here: the one insert path, which the loader and the replay of dead letters share. Does not belong
here: where the rows come from (`loader`, `replay`), SQL (`raw_events`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform.logging import get_logger
from ingest_api.raw_events import Batch, RawEvents, is_bad_value
from ingest_api.tracing import Attributes, SpanMaker, no_span

log = get_logger(__name__)


class LandingIncomplete(RuntimeError):
    """Rows that were inserted can't all be found in the table."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A single row that the table refuses, and why."""

    batch_id: str
    batch_row: int
    event: AcceptedEvent
    reason: str


class Landing:
    """The insert path over one table.

    Parameters
    ----------
    stop : threading.Event
        Ends waiting.

    Attributes
    ----------
    inserts : int
        Inserts that succeeded.
    """

    def __init__(
        self, table: RawEvents, stop: threading.Event, poll_seconds: float, span: SpanMaker = no_span
    ) -> None:
        self.inserts = 0
        self._table = table
        self._stop = stop
        self._poll_seconds = poll_seconds
        self._span = span

    def missing(self, batches: Sequence[Batch], in_doubt: Collection[str]) -> list[Batch]:
        """The rows that are not in the table; only batches in doubt have to be looked up.

        Raises
        ------
        LandingIncomplete
            If it was told to stop while an insert of ours was still running: that may yet succeed.
        """
        doubtful = [batch.batch_id for batch in batches if batch.batch_id in in_doubt]
        if not doubtful:
            return [batch for batch in batches if batch.rows]
        while self._table.running_inserts():
            log.info("waiting for an insert that is still running")
            if self._stop.wait(self._poll_seconds):
                raise LandingIncomplete("stopped while an earlier insert was still running")
        missing = self.absent(batches, doubtful)
        rows = [sum(len(batch.rows) for batch in part) for part in (batches, missing)]
        if rows[0] > rows[1]:
            log.info("rows are there from before", rows=rows[0] - rows[1], rows_missing=rows[1])
        return missing

    def absent(self, batches: Sequence[Batch], looked_up: Sequence[str]) -> list[Batch]:
        """The rows that are not in the table now, taking all of a batch that is not `looked_up`."""
        stored = self._table.stored_rows(looked_up)
        left = [_without(batch, stored.get(batch.batch_id, frozenset())) for batch in batches]
        return [batch for batch in left if batch.rows]

    def insert(self, batches: Sequence[Batch]) -> Iterator[Refusal]:
        """Insert, halving what is refused until the bad rows stand alone; those are returned."""
        try:
            with self._span("INSERT raw.usage_events", _described(batches)):
                self._table.insert(batches)
            self.inserts += 1
        except Exception as error:
            if not is_bad_value(error):
                raise
            halves = _halves(batches)
            if halves is None:
                batch = batches[0]
                yield Refusal(batch.batch_id, batch.rows[0], batch.events[0], str(error))
                return
            for half in halves:
                yield from self.insert(half)


def _described(batches: Sequence[Batch]) -> Attributes:
    return {
        "db.system.name": "clickhouse",
        "db.operation.name": "INSERT",
        "db.collection.name": "raw.usage_events",
        "apex.segments": len(batches),
        "apex.rows": sum(len(batch.rows) for batch in batches),
    }


def _without(batch: Batch, there: frozenset[int]) -> Batch:
    if not there:
        return batch
    kept = [index for index, row in enumerate(batch.rows) if row not in there]
    return Batch(
        batch.batch_id, [batch.rows[index] for index in kept], [batch.events[index] for index in kept]
    )


def _halves(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]] | None:
    """Two parts with as little as possible in common; None for a single row."""
    if len(batches) > 1:
        middle = len(batches) // 2
        return list(batches[:middle]), list(batches[middle:])
    batch = batches[0]
    middle = len(batch.rows) // 2
    if not middle:
        return None
    first, second = slice(None, middle), slice(middle, None)
    return (
        [Batch(batch.batch_id, batch.rows[first], batch.events[first])],
        [Batch(batch.batch_id, batch.rows[second], batch.events[second])],
    )
