"""Event ids that this worker made durable lately, to tell clients at once that they repeat themselves.

A courtesy, not the rule: it forgets, other workers don't share it, and a restart empties it. That an event
counts once, for ever, is decided in `intermediate.int_usage_events`.
"""

from __future__ import annotations

from collections.abc import Iterable

from apex_pipelines.metering.events import AcceptedEvent


class RecentEvents:
    """At least the last `capacity` (customer, event id) pairs that are durable, at most twice as many.

    Two generations instead of an ordered list: forgetting the oldest half at once costs nothing per event.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._young: set[tuple[str, str]] = set()
        self._old: set[tuple[str, str]] = set()

    def __contains__(self, event: AcceptedEvent) -> bool:
        pair = (event.customer_id, event.event_id)
        return pair in self._young or pair in self._old

    def remember(self, events: Iterable[AcceptedEvent]) -> None:
        """Call only once `events` are durable: a repeat of one that was lost must be written."""
        self._young.update([(event.customer_id, event.event_id) for event in events])
        if len(self._young) >= self._capacity:
            self._old = self._young
            self._young = set()
