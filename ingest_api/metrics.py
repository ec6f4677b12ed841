"""Counters of the ingest API, shared by all of its workers.

Belongs here: which series exist, and counting. Does not belong here: when something is counted, the text of a
scrape (`exposition`).

Each worker owns one row of a block of shared memory and is its only writer, so nothing is locked; any worker
can answer a scrape for all. A worker that is restarted goes on counting in the row that it finds.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from ctypes import Array, c_double
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import NewType, cast

from apex_pipelines.customers.tokens import TokenProblem
from apex_pipelines.metering.rejections import RejectionReason
from ingest_api.keys import KeyProblem

# One counter, by the name and labels that a scrape shows.
Series = NewType("Series", str)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations in seconds: how many lie between each limit and the one before, and their sum."""

    name: str
    labels: str
    limits: tuple[float, ...]
    buckets: tuple[Series, ...]
    sum: Series

    @classmethod
    def of(cls, name: str, limits: Sequence[float], labels: str = "") -> Histogram:
        bounds = [*(f"{limit:g}" for limit in limits), "+Inf"]
        joined = f"{labels}," if labels else ""
        buckets = tuple(Series(f'{name}_bucket{{{joined}le="{bound}"}}') for bound in bounds)
        return cls(name, labels, tuple(limits), buckets, series(f"{name}_sum", labels))


def series(name: str, labels: str = "") -> Series:
    return Series(f"{name}{{{labels}}}" if labels else name)


ACCEPTED = series("apex_ingest_events_accepted_total")
DUPLICATE = series("apex_ingest_events_duplicate_total")
REJECTED = {
    reason: series("apex_ingest_events_rejected_total", f'reason="{reason}"') for reason in RejectionReason
}
THROTTLED = {
    cause: series("apex_ingest_throttled_total", f'cause="{cause}"')
    for cause in ("key_rate", "read_rate", "spool")
}
# By the codes that the API answers with: 401, 403, and 400 for a webhook's signature.
AUTH_FAILURES = {
    str(code): series("apex_ingest_auth_failures_total", f'reason="{code}"')
    for code in (*KeyProblem, *TokenProblem, "scope_missing", "bad_signature")
}
BYTES = series("apex_ingest_spooled_bytes_total")
FRAMES = series("apex_ingest_spooled_frames_total")
FSYNC = Histogram.of(
    "apex_ingest_fsync_seconds",
    (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0),
)
REQUEST = "apex_ingest_request_duration_seconds"
STATUS_CLASSES = (2, 3, 4, 5)
_REQUEST_LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class SharedCounters:
    """Memory for the counters of `workers` processes, made before they are started.

    Attributes
    ----------
    answers : dict of (str, int) to Histogram
        How long requests took, by route and class of status (2 for 200 to 299).
    """

    def __init__(self, workers: int, routes: Iterable[str]) -> None:
        self.workers = workers
        self.answers = {
            (route, status): Histogram.of(REQUEST, _REQUEST_LIMITS, f'route="{route}",status="{status}xx"')
            for route in routes
            for status in STATUS_CLASSES
        }
        known = [
            ACCEPTED, DUPLICATE, *REJECTED.values(), *THROTTLED.values(), *AUTH_FAILURES.values(),
            BYTES, FRAMES,
        ]  # fmt: skip
        for histogram in (FSYNC, *self.answers.values()):
            known += [*histogram.buckets, histogram.sum]
        self._slots = {each: slot for slot, each in enumerate(dict.fromkeys(known))}
        self._values = cast("Array[c_double]", RawArray(c_double, workers * len(self._slots)))

    def row(self, worker: int) -> Counters:
        """The counters of `worker`, from 0."""
        return Counters(self._values, worker * len(self._slots), self._slots, self.answers)

    def total(self, counted: Series) -> float:
        """Sum of `counted` over all workers."""
        slot = self._slots[counted]
        return float(sum(self._values[row * len(self._slots) + slot] for row in range(self.workers)))


# Limits of a histogram, where its first bucket is (the others follow), and where its sum is.
_Observed = tuple[tuple[float, ...], int, int]


class Counters:
    """Counters of one worker."""

    def __init__(
        self,
        values: Array[c_double],
        offset: int,
        slots: dict[Series, int],
        answers: dict[tuple[str, int], Histogram],
    ) -> None:
        self._values = values
        self._offset = offset
        self._slots = slots
        # Looked up once, since each request counts there.
        self._taken = tuple(offset + slots[each] for each in (ACCEPTED, BYTES, FRAMES))
        self._fsync = self._places(FSYNC)
        self._answers = {answer: self._places(histogram) for answer, histogram in answers.items()}

    def add(self, counted: Series, amount: float = 1.0) -> None:
        self._values[self._offset + self._slots[counted]] += amount

    def taken(self, events: int, size: int) -> None:
        """Record that a frame of `events` accepted events, `size` bytes, is durable."""
        values, (accepted, written, frames) = self._values, self._taken
        values[accepted] += events
        values[written] += size
        values[frames] += 1

    def flushed(self, seconds: float) -> None:
        """Record how long one group commit took."""
        self._observe(self._fsync, seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Record that a request at `route` was answered with the HTTP `status`."""
        self._observe(self._answers[route, status // 100], seconds)

    def _observe(self, histogram: _Observed, seconds: float) -> None:
        limits, first_bucket, total = histogram
        self._values[first_bucket + bisect_left(limits, seconds)] += 1
        self._values[total] += seconds

    def _places(self, histogram: Histogram) -> _Observed:
        places = [self._offset + self._slots[bucket] for bucket in histogram.buckets]
        return histogram.limits, places[0], self._offset + self._slots[histogram.sum]


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
