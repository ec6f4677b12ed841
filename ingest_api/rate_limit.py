"""How many events a key may send: a token bucket for each, in events per second with a burst.

Belongs here: counting and how long to wait. Does not belong here: who is limited, HTTP (the routes say).

Each worker counts for itself with its share of the limits, so nothing is shared and nothing is locked; a
client whose connections all reach one worker gets that worker's share.
"""

from __future__ import annotations

from collections.abc import Callable

_SWEEP_FROM = 10_000
_ROUNDING_SECONDS = 1e-6


class RateExceeded(Exception):
    """The key has sent more than it may.

    Attributes
    ----------
    wait : float
        Seconds after which the same request fits, if the key sends nothing else until then.
    left : int
        Events that still fit now.
    """

    def __init__(self, wait: float, left: int) -> None:
        super().__init__(f"the rate limit leaves room for {left} events now")
        self.wait = wait
        self.left = left


class KeyRates:
    """Token buckets by key.

    Of a bucket only the instant is kept at which it will be full again; one that is full needs no memory.

    Parameters
    ----------
    per_second : float
        Events that a key may send for as long as it likes; 0 means no limit.
    burst : float
        Events that fit at once into a full bucket.
    monotonic : callable
        Seconds of a clock that never goes back.
    """

    def __init__(self, per_second: float, burst: float, monotonic: Callable[[], float]) -> None:
        self.per_second = per_second
        self.burst = max(burst, 1.0)
        self._monotonic = monotonic
        self._full_at: dict[bytes, float] = {}
        self._sweep_at = _SWEEP_FROM

    def take(self, key: bytes, events: int) -> None:
        """Take `events` out of the bucket, at least one: an empty request costs as well.

        A request larger than the whole bucket fits when the bucket is full, and leaves it in debt: it could
        never be sent otherwise.

        Raises
        ------
        RateExceeded
            If there is not that much in it. Nothing is taken.
        """
        rate = self.per_second
        if not rate:
            return
        now = self._monotonic()
        full_in = self._full_at.get(key, now) - now
        if full_in < 0.0:
            full_in = 0.0
        events = events or 1
        wait = full_in - (self.burst - min(events, self.burst)) / rate
        if wait > _ROUNDING_SECONDS:
            raise RateExceeded(wait, max(0, int(self.burst - full_in * rate)))
        self._full_at[key] = now + full_in + events / rate
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)

    def give_back(self, key: bytes, events: int) -> None:
        """Undo a `take` whose events were not recorded after all."""
        if key in self._full_at:
            self._full_at[key] -= (events or 1) / self.per_second

    def _sweep(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._full_at))
