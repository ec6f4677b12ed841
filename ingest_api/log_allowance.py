"""How often the same line may be written, so that a trouble that repeats itself doesn't fill the disk.

Belongs here: counting lines and what was left out. Does not belong here: writing them.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class LogAllowance:
    """So many lines in so many seconds; the next line that is allowed tells how many were left out.

    Parameters
    ----------
    monotonic : callable
        Tells the seconds.
    """

    def __init__(self, lines: int, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._seconds = seconds
        self._monotonic = monotonic
        self._period = 0
        self._used = 0
        self._left_out = 0

    def take(self) -> int | None:
        """None: write nothing. Otherwise the number of lines left out since the last one."""
        period = int(self._monotonic() / self._seconds)
        if period != self._period:
            self._period, self._used = period, 0
        if self._used >= self._lines:
            self._left_out += 1
            return None
        self._used += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
