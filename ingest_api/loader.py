"""The loader: lands sealed spool segments in `raw.usage_events`, each row once, whatever dies meanwhile.

Belongs here: the order of the steps, and what to do when one fails. Does not belong here: inserting
(`landing`), SQL (`raw_events`), files (`spool.reading`).

One insert carries as many segments as fit; each keeps its own batch id, by which its rows are counted.

A segment is removed only after its rows were counted in the table. After a start or an error nobody knows how
far the last insert came, so the rows of every segment then in the spool are looked up before any is inserted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import math
import os
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError
from pydantic import ValidationError

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform.clock import SystemClock
from apex_pipelines.platform.logging import capture_library_logs, configure_logging, get_logger
from apex_pipelines.settings import Settings, settings_problems
from ingest_api.dead_letters import DeadLetter, DeadLetters
from ingest_api.landing import Landing, LandingIncomplete
from ingest_api.loader_status import LoaderStatus, read_status, write_status
from ingest_api.raw_events import Batch, RawEvents
from ingest_api.spool.reading import Segment, read_segment, recover_abandoned, remove_unfinished
from ingest_api.spool.segments import OPEN, SEALED, list_segments, sync_folder
from ingest_api.tracing import SpanMaker, no_span, start_tracing

log = get_logger(__name__)

_MAX_SEGMENTS_PER_INSERT = 10_000  # bounds memory when segments are tiny
_MAX_BYTES_PER_INSERT = 64 * 1024 * 1024
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_IDLE_STATUS_SECONDS = 1.0
_UNREADABLE_PAUSE_SECONDS = 10.0  # a bad sector may take seconds to fail, and all others wait meanwhile
_ARRAY_OF_ONE = b"\x91"  # MessagePack

_decode_events = msgspec.msgpack.Decoder(list[AcceptedEvent]).decode
_split_events = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class LoaderAlreadyRunning(RuntimeError):
    """Another process loads this spool."""


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
        tracing = start_tracing(settings, "apex-ingest-loader")
        loader = Loader(
            settings.spool_dir,
            table,
            stop,
            tracing.span if tracing is not None else no_span,
            max_rows=settings.loader_max_rows_per_insert,
            poll_seconds=settings.loader_poll_ms / 1000,
        )
        try:
            loader.run()
        finally:
            table.disconnect()
            if tracing is not None:
                tracing.close()


class Loader:
    """One loader of one spool folder, which the caller has locked.

    Parameters
    ----------
    max_rows : int
        Rows of one insert at most, unless a single segment has more.
    """

    def __init__(
        self,
        folder: Path,
        table: RawEvents,
        stop: threading.Event,
        span: SpanMaker = no_span,
        *,
        max_rows: int,
        poll_seconds: float,
    ) -> None:
        self._folder = folder
        self._table = table
        self._span = span
        self._stop = stop
        self._letters = DeadLetters(lambda: table.client)
        self._landing = Landing(table, stop, poll_seconds, span)
        self._status = read_status(folder) or LoaderStatus()
        self._clock = SystemClock()
        self._queue: deque[Path] = deque()
        # Segments that could not be read, and when that was tried last, in monotonic seconds.
        self._unreadable: dict[Path, float] = {}
        self._max_rows = max_rows
        self._poll_seconds = poll_seconds
        # Batches of which some rows may stand in the table already.
        self._in_doubt = {path.stem for suffix in (SEALED, OPEN) for path in list_segments(folder, suffix)}

    def run(self) -> None:
        """Load until told to stop."""
        pause = _FIRST_PAUSE_SECONDS
        remove_unfinished(self._folder, self._clock.now())
        log.info("loader ready", waiting=len(self._in_doubt))
        while not self._stop.is_set():
            group: list[Segment] = []
            try:
                group = self._next_group()
                if group:
                    with self._span("land segments", {"apex.segments": len(group)}):
                        self._land(group)
                self._tell(is_idle=not group)
                if not group:
                    self._stop.wait(self._poll_seconds)
                pause = _FIRST_PAUSE_SECONDS
            except (ClickHouseError, OSError, LandingIncomplete) as error:
                self._in_doubt.update(segment.batch_id for segment in group)
                self._queue.clear()
                self._status.failures += 1
                self._status.unreadable = len(self._unreadable)
                write_status(self._folder, self._status)
                self._table.disconnect()
                log.error("loading failed; trying again", error=str(error)[:500], seconds=pause)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _next_group(self) -> list[Segment]:
        """The oldest segments that fit into one insert."""
        if not self._queue:
            # The folder is read once for all that waits in it, not once for each insert.
            recover_abandoned(self._folder)
            self._queue.extend(self._to_read(list_segments(self._folder, SEALED)))
        group: list[Segment] = []
        rows = size = 0
        while self._queue and len(group) < _MAX_SEGMENTS_PER_INSERT:
            path = self._queue[0]
            try:
                segment = read_segment(path)
            except OSError as error:
                # One bad sector must not hold up all others; the segment stays and is tried again.
                self._note_unreadable(path, error)
                self._queue.popleft()
                continue
            self._unreadable.pop(path, None)
            rows += segment.row_count
            size += segment.size
            if group and (rows > self._max_rows or size > _MAX_BYTES_PER_INSERT):
                break
            group.append(segment)
            self._queue.popleft()
        return group

    def _to_read(self, listed: list[Path]) -> Iterator[Path]:
        """What is listed, without segments that could not be read a moment ago."""
        self._unreadable = {path: self._unreadable[path] for path in listed if path in self._unreadable}
        tried_before = time.monotonic() - _UNREADABLE_PAUSE_SECONDS
        return (path for path in listed if self._unreadable.get(path, -math.inf) <= tried_before)

    def _note_unreadable(self, path: Path, error: OSError) -> None:
        if path not in self._unreadable:
            message = "segment can't be read, or its damage not be set aside; tried again and again"
            log.error(message, batch_id=path.stem, error=str(error))
        self._unreadable[path] = time.monotonic()

    def _land(self, group: list[Segment]) -> None:
        began = time.perf_counter()
        inserts_before = self._landing.inserts
        dead: list[DeadLetter] = []
        batches = [_decode(segment, dead) for segment in group]
        expected = {batch.batch_id: len(batch.rows) for batch in batches}
        missing = self._landing.missing(batches, self._in_doubt)
        if missing:
            segments = {segment.batch_id: segment for segment in group}
            for refusal in self._landing.insert(missing):
                batch_id, row = refusal.batch_id, refusal.batch_row
                raw = _raw_event(segments[batch_id], row)
                dead.append(DeadLetter.of_event(batch_id, row, raw, refusal.event, refusal.reason))
                expected[batch_id] -= 1
        if dead:
            self._status.dead_letters += self._letters.bury(dead)
        self._verify(expected, just_now=self._in_doubt.isdisjoint(expected))
        for segment in group:
            segment.path.unlink(missing_ok=True)
        sync_folder(self._folder)
        self._in_doubt.difference_update(expected)
        self._status.rows += sum(expected.values())
        self._status.segments += len(group)
        self._status.inserts += self._landing.inserts - inserts_before
        self._status.seconds += time.perf_counter() - began
        log.debug("landed", segments=len(group), rows=sum(expected.values()))

    def _tell(self, *, is_idle: bool) -> None:
        """Write the status where it has news; that an idle loader is well is news once a second."""
        now = self._clock.now().timestamp()
        is_news = self._status.unreadable != len(self._unreadable)
        self._status.unreadable = len(self._unreadable)
        # An idle loader with segments that it can't read is not well.
        is_well = not is_idle or not self._unreadable
        if is_well and (
            not is_idle or abs(now - (self._status.last_success_at or 0.0)) >= _IDLE_STATUS_SECONDS
        ):
            self._status.last_success_at = now
            is_news = True
        if is_news:
            write_status(self._folder, self._status)

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
            dead.append(
                DeadLetter.of_frame(segment.batch_id, frame.first_row, frame.row_count, frame.payload, reason)
            )
            continue
        rows.extend(range(frame.first_row, frame.first_row + len(decoded)))
        events.extend(decoded)
    return Batch(segment.batch_id, rows, events)


def _raw_event(segment: Segment, row: int) -> bytes:
    """The bytes of one event as they are in the spool, as an array of one."""
    frame = next(part for part in segment.frames if 0 <= row - part.first_row < part.row_count)
    return _ARRAY_OF_ONE + bytes(_split_events(frame.payload)[row - frame.first_row])


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
        # Only for people. A full disk has no room for it, and it is the loader that makes room.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _spool_identity(folder: Path) -> str:
    """A name of this spool among all hosts' spools, made once. The caller holds the loader lock.

    While the disk is too full to keep it, each start has another name.
    """
    path = folder / "identity"
    if path.exists():
        return path.read_text()
    name = uuid.uuid4().hex
    temporary = path.with_suffix(".writing")
    try:
        temporary.write_text(name)
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        temporary.unlink(missing_ok=True)
        log.warning("the spool's identity can't be kept; trying again at the next start", error=str(error))
    return name


def main() -> int:
    """Load until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ingest_api.loader", description="Load the spool into ClickHouse."
    )
    parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"error: settings are wrong: {settings_problems(error)}", file=sys.stderr)
        return 1
    configure_logging(settings.log_level, settings.log_format)
    capture_library_logs(settings.log_format)
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
