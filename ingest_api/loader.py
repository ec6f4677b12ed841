"""The loader: lands sealed spool segments in `raw.usage_events`, each row once, whatever dies meanwhile.

Belongs here: the order of the steps, and what to do when one fails. Does not belong here: SQL (`raw_events`),
files (`spool.reading`).

A segment is removed only after its rows were counted in the table. After a start or an error nobody knows how
far the last insert came, so the rows of every segment then in the spool are looked up before any is inserted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform.clock import SystemClock
from apex_pipelines.platform.logging import configure_logging, get_logger
from apex_pipelines.settings import Settings
from ingest_api.raw_events import Batch, DeadLetter, RawEvents, is_bad_value
from ingest_api.spool.reading import Segment, read_segment, recover_abandoned, remove_unfinished
from ingest_api.spool.segments import OPEN, SEALED, list_segments, sync_folder

log = get_logger(__name__)

_MAX_SEGMENTS_PER_INSERT = 100
_MAX_BYTES_PER_INSERT = 64 * 1024 * 1024
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0

_decode_events = msgspec.msgpack.Decoder(list[AcceptedEvent]).decode


class LoaderAlreadyRunning(RuntimeError):
    """Another process loads this spool."""


class LandingIncomplete(RuntimeError):
    """Rows that were inserted can't all be found in the table."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Load segments until `stop` is set. Blocks; an outage of ClickHouse is waited out.

    Raises
    ------
    LoaderAlreadyRunning
        If another process loads the same spool folder.
    OSError
        If the spool folder can't be made.
    """
    settings.spool_dir.mkdir(parents=True, exist_ok=True)
    with _only_loader(settings.spool_dir):
        table = RawEvents(settings, f"ingest-loader {_spool_identity(settings.spool_dir)}")
        loader = Loader(
            settings.spool_dir,
            table,
            stop,
            max_rows=settings.loader_max_rows_per_insert,
            poll_seconds=settings.loader_poll_ms / 1000,
        )
        try:
            loader.run()
        finally:
            table.disconnect()


class Loader:
    """One loader of one spool folder, which the caller has locked.

    Parameters
    ----------
    max_rows : int
        Rows after which an insert takes no further segment.
    """

    def __init__(
        self, folder: Path, table: RawEvents, stop: threading.Event, *, max_rows: int, poll_seconds: float
    ) -> None:
        self._folder = folder
        self._table = table
        self._stop = stop
        self._max_rows = max_rows
        self._poll_seconds = poll_seconds
        # Batches of which some rows may stand in the table already.
        self._in_doubt = {path.stem for suffix in (SEALED, OPEN) for path in list_segments(folder, suffix)}

    def run(self) -> None:
        """Load until told to stop."""
        pause = _FIRST_PAUSE_SECONDS
        remove_unfinished(self._folder, SystemClock().now())
        log.info("loader ready", waiting=len(self._in_doubt))
        while not self._stop.is_set():
            group: list[Segment] = []
            try:
                recover_abandoned(self._folder)
                group = self._next_group()
                if group:
                    self._land(group)
                else:
                    self._stop.wait(self._poll_seconds)
                pause = _FIRST_PAUSE_SECONDS
            except (ClickHouseError, OSError, LandingIncomplete) as error:
                self._in_doubt.update(segment.batch_id for segment in group)
                self._table.disconnect()
                log.error("loading failed; trying again", error=str(error)[:500], seconds=pause)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _next_group(self) -> list[Segment]:
        """The oldest segments that fit into one insert."""
        group: list[Segment] = []
        rows = size = 0
        for path in list_segments(self._folder, SEALED)[:_MAX_SEGMENTS_PER_INSERT]:
            try:
                segment = read_segment(path)
            except OSError as error:
                # One bad sector must not hold up all others; the segment stays and is tried again.
                log.error("segment can't be read", batch_id=path.stem, error=str(error))
                continue
            group.append(segment)
            rows += segment.row_count
            size += segment.size
            if rows >= self._max_rows or size >= _MAX_BYTES_PER_INSERT:
                break
        return group

    def _land(self, group: list[Segment]) -> None:
        dead: list[DeadLetter] = []
        batches = [_decode(segment, dead) for segment in group]
        expected = {batch.batch_id: len(batch.rows) for batch in batches}
        missing = self._missing(batches)
        if missing:
            for letter in self._insert(missing):
                dead.append(letter)
                expected[letter.batch_id] -= 1
        if dead:
            self._table.bury(dead)
        self._verify(expected, just_now=self._in_doubt.isdisjoint(expected))
        for segment in group:
            segment.path.unlink(missing_ok=True)
        sync_folder(self._folder)
        self._in_doubt.difference_update(expected)
        log.debug("landed", segments=len(group), rows=sum(expected.values()))

    def _missing(self, batches: list[Batch]) -> list[Batch]:
        """The rows that are not in the table; only batches in doubt have to be looked up."""
        in_doubt = [batch.batch_id for batch in batches if batch.batch_id in self._in_doubt]
        if not in_doubt:
            return [batch for batch in batches if batch.rows]
        while self._table.running_inserts():
            log.info("waiting for an insert that is still running")
            if self._stop.wait(self._poll_seconds):
                raise LandingIncomplete("stopped while an earlier insert was still running")
        stored = self._table.stored(in_doubt, just_now=False)
        missing = []
        for batch in batches:
            there = stored.get(batch.batch_id)
            if there is not None:
                batch = _without(batch, self._table.stored_rows(batch.batch_id))
                log.info(
                    "segment was loaded before, at least in part",
                    batch_id=batch.batch_id, there=there.distinct, missing=len(batch.rows),
                )  # fmt: skip
            if batch.rows:
                missing.append(batch)
        return missing

    def _insert(self, batches: list[Batch]) -> Iterator[DeadLetter]:
        """Insert, halving what is refused until the bad rows stand alone; those are returned."""
        try:
            self._table.insert(batches)
        except Exception as error:
            if not is_bad_value(error):
                raise
            halves = _halves(batches)
            if halves is None:
                batch = batches[0]
                yield DeadLetter.of_event(batch.batch_id, batch.rows[0], batch.events[0], str(error))
                return
            for half in halves:
                yield from self._insert(half)

    def _verify(self, expected: dict[str, int], *, just_now: bool) -> None:
        stored = self._table.stored(list(expected), just_now=just_now)
        for batch_id, rows in expected.items():
            there = stored.get(batch_id)
            distinct = there.distinct if there is not None else 0
            if distinct < rows:
                raise LandingIncomplete(f"{distinct} of {rows} rows of {batch_id} are in raw.usage_events")
            if there is not None and there.rows > there.distinct:
                # The models count an event once all the same; but somebody must know.
                log.error("rows stand twice in raw.usage_events", batch_id=batch_id, rows=there.rows)


def _decode(segment: Segment, dead: list[DeadLetter]) -> Batch:
    rows: list[int] = []
    events: list[AcceptedEvent] = []
    for frame in segment.frames:
        try:
            decoded = _decode_events(frame.payload)
        except ValueError as error:
            reason = f"{frame.row_count} rows can't be decoded: {error}"
            dead.append(DeadLetter.of_bytes(segment.batch_id, frame.first_row, frame.payload, reason))
            continue
        rows.extend(range(frame.first_row, frame.first_row + len(decoded)))
        events.extend(decoded)
    return Batch(segment.batch_id, rows, events)


def _without(batch: Batch, there: frozenset[int]) -> Batch:
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


@contextlib.contextmanager
def _only_loader(folder: Path) -> Iterator[None]:
    """Hold the folder's loader lock, which the kernel frees when this process dies."""
    descriptor = os.open(folder / "loader.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 20).decode().strip() or "unknown"
            raise LoaderAlreadyRunning(
                f"another loader (process {owner}) loads {folder}; one is enough"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _spool_identity(folder: Path) -> str:
    """A name of this spool among all hosts' spools, made once. The caller holds the loader lock."""
    path = folder / "identity"
    if not path.exists():
        temporary = path.with_suffix(".writing")
        temporary.write_text(uuid.uuid4().hex)
        temporary.rename(path)
    return path.read_text()


def main() -> int:
    """Load until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ingest_api.loader", description="Load the spool into ClickHouse."
    )
    parser.parse_args()
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(settings, stop)
    except (LoaderAlreadyRunning, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
