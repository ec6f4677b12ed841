"""Group commit: many requests wait, one flush makes all of them durable, then all are answered.

Belongs here: who waits for which flush, sealing by age and size, back-pressure. Does not belong here: bytes
and files (`frames`, `writing`), what the payloads mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from apex_pipelines.platform.logging import get_logger
from ingest_api.log_allowance import LogAllowance
from ingest_api.spool.backlog import DrainEstimate
from ingest_api.spool.segments import spool_usage
from ingest_api.spool.writing import SegmentFile, check_writable

log = get_logger(__name__)

_USAGE_SECONDS = 0.5  # how old the count of spool bytes may be
_FAILURE_LINE_SECONDS = 10.0  # a full disk fails each flush, and the log may be on it
_MAX_WAITING_BYTES = 64 * 1024 * 1024  # bounds memory when the disk is slower than the network


class SpoolUnavailable(Exception):
    """Nothing was made durable; the same request may be sent again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SpoolFull(SpoolUnavailable):
    """The spool has reached its limit: the loader can't keep up, or ClickHouse is away for long."""


class SpoolBusy(SpoolUnavailable):
    """The spool has reached its soft limit: clients are asked to slow down while there is still room."""


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Limits of one spool folder; sizes in bytes, ages in seconds.

    Attributes
    ----------
    soft_size : int or None
        From here on clients are asked to slow down; at `spool_size` nothing is taken any more.
    """

    segment_size: int
    segment_age: float
    spool_size: int
    soft_size: int | None = None

    @property
    def lowest_size(self) -> int:
        """The size from which on something is refused."""
        return self.spool_size if self.soft_size is None else min(self.soft_size, self.spool_size)


@dataclass(frozen=True, slots=True)
class Commit:
    """A group commit that succeeded; `origins` are the requests that shared it, as `append` was told."""

    seconds: float
    rows: int
    size: int
    origins: list[object]


_Waiting = tuple[bytes, int, object, "asyncio.Future[None]"]
# Of a group that is durable: the seconds it took, its rows, the bytes of its payloads.
_Written = tuple[float, int, int]


class SpoolWriter:
    """Appends payloads of one worker to the spool; `append` returns when the payload is durable.

    Parameters
    ----------
    worker : str
        Short name of the worker, the first part of its segments' names.
    on_flush : callable
        Called with the seconds that each write and sync took, in the thread that did it.
    on_commit : callable, optional
        Called with each commit in the event loop, after those who waited for it were told.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        limits: SpoolLimits,
        loop: asyncio.AbstractEventLoop,
        on_flush: Callable[[float], None],
        on_commit: Callable[[Commit], None] | None = None,
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._limits = limits
        self._loop = loop
        self._on_flush = on_flush
        self._on_commit = on_commit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        # Apart, since listing many segments takes longer than a flush, and nobody shall wait for it.
        self._counter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool-usage")
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._is_flushing = False
        self._lowest_size = limits.lowest_size
        self._drain = DrainEstimate()
        self._count_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_failing = False
        self._failure_lines = LogAllowance(1, _FAILURE_LINE_SECONDS)
        # Owned by the flusher thread.
        self._segment: SegmentFile | None = None
        # What was counted last, and what this worker wrote since that count was begun.
        self._counted_bytes = 0
        self._written_bytes = 0
        self._counted_at = 0.0
        self._is_counting = False
        self._counted(self._usage(), written_before=0)  # so that a full spool refuses the first request too

    @property
    def is_full(self) -> bool:
        return self._spool_bytes >= self._limits.spool_size

    @property
    def _spool_bytes(self) -> int:
        """Bytes in the spool, with those of other workers as of half a second ago."""
        return self._counted_bytes + self._written_bytes

    async def is_writable(self) -> bool:
        """Whether the disk takes what is written: as the last write went, or after a failed one by a try."""
        if not self._is_failing:
            return True
        try:
            await self._loop.run_in_executor(self._thread, check_writable, self._folder)
        except OSError:
            return False
        return True

    async def append(self, payload: bytes, row_count: int, origin: object = None) -> None:
        """Return once `payload`, which holds `row_count` rows, has been synced to disk.

        `origin` is only handed on to whoever is told of the commit.

        Raises
        ------
        SpoolUnavailable
            If it is not durable and the client must send it again later.
        """
        if self._spool_bytes >= self._lowest_size:
            self._refuse()
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            raise SpoolUnavailable("too much is waiting for the disk", retry_after=1)
        durable: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((payload, row_count, origin, durable))
        self._waiting_bytes += len(payload)
        if not self._is_flushing:
            self._is_flushing = True
            # One turn of the event loop later, so that requests that arrived together share the flush.
            self._loop.call_soon(self._flush)
        await durable

    def close(self) -> None:
        """Seal what is open. Call when no request is in flight; blocks."""
        self._is_closed = True
        for timer in (self._age_timer, self._count_timer):
            if timer is not None:
                timer.cancel()
        self._thread.submit(self._seal).result()
        self._thread.shutdown()
        self._counter.shutdown()

    def _refuse(self) -> NoReturn:
        if self._count_timer is None:
            self._count_later()
        now = time.monotonic()
        if self.is_full:
            seconds = self._drain.seconds_until(self._limits.spool_size, now)
            raise SpoolFull("the spool has reached its limit; the backlog is being loaded", seconds)
        seconds = self._drain.seconds_until(self._lowest_size, now)
        raise SpoolBusy("the spool is filling up; the backlog is being loaded", seconds)

    def _count_later(self) -> None:
        """Count again and again until there is room: nobody appends meanwhile, which would count as well."""
        self._count_timer = self._loop.call_later(_USAGE_SECONDS, self._count_now)

    def _count_now(self) -> None:
        if self._count_timer is not None:
            self._count_timer.cancel()
            self._count_timer = None
        if self._is_closed or self._is_counting:
            return
        self._is_counting = True
        written_before = self._written_bytes
        counted = self._loop.run_in_executor(self._counter, self._usage)
        counted.add_done_callback(lambda done: self._counted(done.result(), written_before))

    def _counted(self, size: int | None, written_before: int) -> None:
        """Take over the `size` of the spool; None when it could not be counted."""
        self._is_counting = False
        self._counted_at = time.monotonic()
        if size is not None:
            self._counted_bytes = size
            self._written_bytes -= written_before
        self._drain.saw(self._spool_bytes, self._counted_at)
        if self._spool_bytes >= self._lowest_size and self._count_timer is None and not self._is_closed:
            self._count_later()

    def _usage(self) -> int | None:
        """Bytes in the spool folder; blocks. None when it can't be read."""
        try:
            return spool_usage(self._folder).size
        except OSError as error:
            log.error("spool folder can't be read", error=str(error))
            return None

    def _flush(self) -> None:
        group = self._waiting
        self._waiting = []
        self._waiting_bytes = 0
        flushed = self._loop.run_in_executor(self._thread, self._commit, group)
        flushed.add_done_callback(lambda done: self._answer(group, done))

    def _answer(self, group: list[_Waiting], done: asyncio.Future[_Written]) -> None:
        error = done.exception()
        if self._waiting:
            self._flush()
        else:
            self._is_flushing = False
        self._is_failing = error is not None
        for _, _, _, durable in group:
            if durable.done():  # the client went away and its request was cancelled
                continue
            if error is None:
                durable.set_result(None)
            else:
                problem = SpoolUnavailable("the disk does not take what is written", retry_after=5)
                durable.set_exception(problem)
        if error is not None:
            self._tell_of(error, len(group))
            return
        if self._age_timer is None:
            self._age_timer = self._loop.call_later(self._limits.segment_age, self._seal_by_age)
        seconds, rows, size = done.result()
        self._written_bytes += size
        is_old = time.monotonic() - self._counted_at > _USAGE_SECONDS
        if is_old or self._spool_bytes >= self._lowest_size:
            self._count_now()
        if self._on_commit is not None:
            self._on_commit(Commit(seconds, rows, size, [origin for _, _, origin, _ in group]))

    def _tell_of(self, error: BaseException, requests: int) -> None:
        left_out = self._failure_lines.take()
        if left_out is None:
            return
        fields = {"left_out": left_out} if left_out else {}
        log.error("spool write failed; not acknowledged", error=str(error), requests=requests, **fields)

    def _seal_by_age(self) -> None:
        self._age_timer = None
        self._loop.run_in_executor(self._thread, self._seal)

    # From here on: in the flusher thread.

    def _commit(self, group: list[_Waiting]) -> _Written:
        started = time.perf_counter()
        payloads = [(payload, row_count) for payload, row_count, _, _ in group]
        segment = self._segment
        try:
            if segment is None:
                segment = SegmentFile.create(self._folder, self._worker)
            segment.append(payloads)
        except BaseException:
            self._segment = None
            if segment is not None:
                segment.abandon()
            raise
        self._segment = segment
        seconds = time.perf_counter() - started
        self._on_flush(seconds)
        if segment.size >= self._limits.segment_size:
            self._seal()
        return seconds, sum(rows for _, rows in payloads), sum(len(payload) for payload, _ in payloads)

    def _seal(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.seal()
        except OSError as error:
            segment.abandon()
            log.error("segment could not be sealed; the loader recovers it", error=str(error))
