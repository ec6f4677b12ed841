"""How long until the loader has made room, judged by how the spool has shrunk so far.

Belongs here: the estimate behind `Retry-After`. Does not belong here: counting files (`segments`), limits.
"""

from __future__ import annotations

import math

_SHORTEST_SECONDS = 1
_LONGEST_SECONDS = 60


class DrainEstimate:
    """The rate at which the backlog shrinks, from sizes seen one after the other.

    What arrives meanwhile makes it look slower than it is; while requests are refused nothing arrives.
    """

    def __init__(self) -> None:
        self._size = 0
        self._rate: float | None = None
        self._shrunk_at: float | None = None

    def saw(self, size: int, now: float) -> None:
        """Note that the spool held `size` bytes at `now`, in monotonic seconds."""
        if self._shrunk_at is None:
            self._shrunk_at = now
        elif size < self._size:
            # The loader removes segments in groups, so the time since the last group counts as well.
            rate = (self._size - size) / max(now - self._shrunk_at, 0.001)
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
            self._shrunk_at = now
        self._size = size

    def seconds_until(self, limit: int, now: float) -> int:
        """Whole seconds, 1 to 60, until less than `limit` bytes should be left.

        While nothing moves, such as in an outage of ClickHouse, it is expected to last as long again as it
        has lasted so far.
        """
        stalled = now - self._shrunk_at if self._shrunk_at is not None else 0.0
        expected = (self._size - limit + 1) / self._rate if self._rate else 0.0
        return min(max(math.ceil(max(stalled, expected)), _SHORTEST_SECONDS), _LONGEST_SECONDS)
