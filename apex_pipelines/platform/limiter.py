"""How fast we may call somebody: a token bucket that makes its callers wait.

Belongs here: waiting in one process. Does not belong here: refusing others (`ingest_api/rate_limit.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Limiter:
    """Lets `rate` calls a second through, evenly but for a burst; safe to use from many threads.

    Parameters
    ----------
    rate : float
        Calls a second.
    burst : int
        Calls that may go at once after a rest.
    monotonic, sleep : callable
        The clock and the waiting, both in seconds; tests give their own.
    """

    def __init__(
        self,
        rate: float,
        burst: int = 1,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 1 / rate
        self._burst = burst
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next = float("-inf")

    def wait(self) -> None:
        """Return when the next call may go."""
        with self._lock:
            now = self._monotonic()
            # A rest earns at most `burst` calls.
            turn = max(self._next, now - (self._burst - 1) * self._interval)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)
