"""Counters of the ingest API, shared by all of its workers, as Prometheus text.

Belongs here: which series exist, counting, rendering. Does not belong here: when something is counted.

Each worker owns one row of a block of shared memory and is its only writer, so nothing is locked; any worker
can answer a scrape for all. A worker that is restarted goes on counting in the row that it finds.
"""

from __future__ import annotations

import fcntl
import os
from ctypes import Array, c_double
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import cast

from apex_pipelines.metering.rejections import RejectionReason
from ingest_api.loader_status import LoaderStatus
from ingest_api.spool.segments import SpoolUsage

FLUSH_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One counter: its metric's name and the labels that set it apart.

    Each is made once and looked up as itself: comparing names for every count took as long as counting.
    """

    name: str
    labels: str = ""


ACCEPTED = Series("apex_ingest_events_accepted_total")
DUPLICATE = Series("apex_ingest_events_duplicate_total")
REJECTED = {
    reason: Series("apex_ingest_events_rejected_total", f'reason="{reason}"') for reason in RejectionReason
}
THROTTLED = {
    cause: Series("apex_ingest_throttled_total", f'cause="{cause}"') for cause in ("key_rate", "spool")
}
ANSWERS = {status: Series("apex_ingest_responses_total", f'status="{status}xx"') for status in (2, 3, 4, 5)}
BYTES = Series("apex_ingest_spooled_bytes_total")
FLUSH_SECONDS = Series("apex_ingest_fsync_seconds_sum")
FLUSH_COUNT = Series("apex_ingest_fsync_seconds_count")
FLUSH_BUCKET = [
    Series("apex_ingest_fsync_seconds_bucket", f'le="{limit:g}"') for limit in (*FLUSH_BUCKETS, float("inf"))
]

_HELP = {
    "apex_ingest_events_accepted_total": "Events acknowledged as durable.",
    "apex_ingest_events_duplicate_total": "Repeats recognised while fresh; the marts find the rest.",
    "apex_ingest_events_rejected_total": "Events not accepted, by reason.",
    "apex_ingest_throttled_total": "Requests answered with 429, by what they were too much for.",
    "apex_ingest_responses_total": "Answers by class of HTTP status.",
    "apex_ingest_spooled_bytes_total": "Bytes of events made durable.",
    "apex_ingest_fsync_seconds": "Seconds that one group commit took to write and sync.",
    "apex_ingest_spool_bytes": "Bytes in the spool that are not loaded yet.",
    "apex_ingest_spool_segments": "Segments in the spool that are not loaded yet.",
    "apex_ingest_backlog_seconds": "Age of the oldest segment that is not loaded yet.",
    "apex_ingest_damaged_pieces": "Damaged pieces of spool files that were kept aside and not removed yet.",
    "apex_loader_rows_total": "Rows found in raw.usage_events after loading.",
    "apex_loader_segments_total": "Segments loaded and removed.",
    "apex_loader_inserts_total": "Inserts that succeeded.",
    "apex_loader_seconds_total": "Seconds spent on loading, from reading segments to removing them.",
    "apex_loader_dead_letters_total": "Rows or frames put aside because they can't be loaded.",
    "apex_loader_failures_total": "Loads that failed and were tried again.",
    "apex_loader_last_success_age_seconds": "Since a load ended well or nothing was left to load.",
}
_ALL = [
    ACCEPTED,
    DUPLICATE,
    *REJECTED.values(),
    *THROTTLED.values(),
    *ANSWERS.values(),
    BYTES,
    *FLUSH_BUCKET,
    FLUSH_SECONDS,
    FLUSH_COUNT,
]
_SLOT = {series: index for index, series in enumerate(_ALL)}


class SharedCounters:
    """Memory for the counters of `workers` processes, made before they are started."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._values = cast("Array[c_double]", RawArray(c_double, workers * len(_ALL)))

    def row(self, worker: int) -> Counters:
        """The counters of `worker`, from 0."""
        return Counters(self._values, worker * len(_ALL))

    def total(self, series: Series) -> float:
        """Sum of `series` over all workers."""
        slot = _SLOT[series]
        return float(sum(self._values[row * len(_ALL) + slot] for row in range(self.workers)))


class Counters:
    """Counters of one worker."""

    def __init__(self, values: Array[c_double], offset: int) -> None:
        self._values = values
        self._offset = offset

    def add(self, series: Series, amount: float = 1.0) -> None:
        self._values[self._offset + _SLOT[series]] += amount

    def flushed(self, seconds: float) -> None:
        """Record one group commit in the histogram."""
        self.add(FLUSH_COUNT)
        self.add(FLUSH_SECONDS, seconds)
        for limit, series in zip((*FLUSH_BUCKETS, float("inf")), FLUSH_BUCKET, strict=True):
            if seconds <= limit:
                self.add(series)


def claim_worker_number(lock_file: Path, workers: int) -> int:
    """The lowest number below `workers` that no living process has; it is this process's until it dies.

    Raises
    ------
    OSError
        If all numbers are taken.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    for number in range(workers):
        try:
            # A record lock belongs to the process and goes with it; the descriptor stays open on purpose.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            continue
        return number
    os.close(descriptor)
    raise OSError(f"all {workers} worker numbers are taken in {lock_file}")


def render(
    counters: SharedCounters,
    usage: SpoolUsage,
    backlog_seconds: float,
    damaged_pieces: int,
    loader: LoaderStatus | None,
    now: float,
) -> str:
    """The Prometheus exposition of all workers' counters, of the spool and of its loader.

    Parameters
    ----------
    loader : LoaderStatus or None
        Without one its series are left out, so that a loader that never ran shows as absent.
    now : float
        The machine's time in seconds since 1970-01-01 UTC.
    """
    lines: list[str] = []
    described: set[str] = set()

    def sample(name: str, labels: str, value: float, kind: str) -> None:
        family = name
        for suffix in ("_bucket", "_sum", "_count"):
            family = family.removesuffix(suffix) if family.removesuffix(suffix) in _HELP else family
        if family not in described:
            described.add(family)
            lines.append(f"# HELP {family} {_HELP[family]}")
            lines.append(f"# TYPE {family} {'histogram' if family != name else kind}")
        lines.append(f"{name}{{{labels}}} {value:.17g}" if labels else f"{name} {value:.17g}")

    for series in _ALL:
        sample(series.name, series.labels.replace('le="inf"', 'le="+Inf"'), counters.total(series), "counter")
    sample("apex_ingest_spool_bytes", "", usage.size, "gauge")
    sample("apex_ingest_spool_segments", "", usage.segments, "gauge")
    sample("apex_ingest_backlog_seconds", "", backlog_seconds, "gauge")
    sample("apex_ingest_damaged_pieces", "", damaged_pieces, "gauge")
    if loader is not None:
        for field in ("rows", "segments", "inserts", "seconds", "dead_letters", "failures"):
            sample(f"apex_loader_{field}_total", "", getattr(loader, field), "counter")
        if loader.last_success_at is not None:
            age = max(0.0, now - loader.last_success_at)
            sample("apex_loader_last_success_age_seconds", "", age, "gauge")
    return "\n".join(lines) + "\n"
