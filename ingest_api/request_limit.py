"""How often one customer may ask the people-facing endpoints.

Belongs here: counting requests. Does not belong here: HTTP headers (the routes write them).

Each worker counts for itself: with n workers a customer gets at most n times the limit.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

_MAX_CUSTOMERS = 10_000


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a customer stands after a request; the oldest counted one is forgotten in `reset_seconds`."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: int


class RequestLimit:
    """At most `limit` requests of a customer in any `window_seconds`; refused ones don't count.

    Parameters
    ----------
    seconds : callable
        A clock that never goes back; not the platform's, which may stand still.
    """

    def __init__(
        self, limit: int, window_seconds: float, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self.window_seconds = window_seconds
        self._seconds = seconds
        self._requests: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, customer_id: str) -> Standing:
        """Count a request of `customer_id`, if it may have one."""
        now = self._seconds()
        requests = self._requests.setdefault(customer_id, deque())
        self._requests.move_to_end(customer_id)
        if len(self._requests) > _MAX_CUSTOMERS:
            self._requests.popitem(last=False)
        while requests and requests[0] <= now - self.window_seconds:
            requests.popleft()
        allowed = len(requests) < self._limit
        if allowed:
            requests.append(now)
        reset = max(math.ceil(requests[0] + self.window_seconds - now), 1)
        return Standing(allowed, self._limit, self._limit - len(requests), reset)
