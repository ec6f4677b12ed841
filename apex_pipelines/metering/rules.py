"""Which usage events count: the one place that decides it.

Belongs here: rules of one event, as a pure function of the event, its arrival and the catalogue.
Does not belong here: whether an event came before (that is decided in the marts, for ever), keys, HTTP, disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from apex_pipelines.metering.events import (
    EPOCH,
    MAX_METADATA_BYTES,
    MILLISECOND,
    AcceptedEvent,
    UsageEvent,
    microseconds,
    milliseconds,
)
from apex_pipelines.metering.quantity import (
    QuantityNotFinite,
    QuantityTooLarge,
    QuantityTooPrecise,
    to_storage,
)
from apex_pipelines.metering.rejections import Rejection, RejectionReason
from apex_pipelines.platform.catalogue import Metric

_encode = msgspec.json.Encoder().encode


class Arrival:
    """Who sent a request and when it arrived; the same for all of its events.

    Parameters
    ----------
    customer_id : str
        Resolved from the API key, never from the body.
    now : datetime
        Aware instant of arrival.
    historical : bool
        Whether the key may send events of any age, for imports.
    """

    __slots__ = ("customer_id", "earliest_ms", "historical", "latest_ms", "now_ms", "now_us")

    def __init__(
        self, customer_id: str, now: datetime, *, historical: bool, max_late_ms: int, max_early_ms: int
    ) -> None:
        self.customer_id = customer_id
        self.historical = historical
        self.now_us = microseconds(now)
        self.now_ms = now_ms = self.now_us // 1000
        self.earliest_ms = 0 if historical else now_ms - max_late_ms
        self.latest_ms = now_ms + max_early_ms


@dataclass(frozen=True, slots=True)
class MeteringRules:
    """The rules of metering, with what they depend on.

    Attributes
    ----------
    metrics : mapping of str to Metric
        The metric catalogue.
    max_late, max_early : timedelta
        How far an event may lie before and after its arrival; both ends still count.
    new_event_id : callable
        Makes the id of an event that came without one.
    """

    metrics: Mapping[str, Metric]
    max_late: timedelta
    max_early: timedelta
    new_event_id: Callable[[], str]
    _max_late_ms: int = field(init=False)
    _max_early_ms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_max_late_ms", self.max_late // MILLISECOND)
        object.__setattr__(self, "_max_early_ms", self.max_early // MILLISECOND)

    def arrival(self, customer_id: str, now: datetime, *, historical: bool) -> Arrival:
        """An arrival at `now`, with the limits of time that follow from these rules."""
        return Arrival(
            customer_id, now, historical=historical,
            max_late_ms=self._max_late_ms, max_early_ms=self._max_early_ms,
        )  # fmt: skip

    def judge(self, event: UsageEvent, arrival: Arrival) -> AcceptedEvent | Rejection:
        """Accept `event` in storage units, or say why not."""
        metric = self.metrics.get(event.metric_type)
        if metric is None:
            known = ", ".join(self.metrics)
            return _reject(event, RejectionReason.UNKNOWN_METRIC, f"{event.metric_type!r} is none of {known}")
        try:
            quantity = to_storage(event.quantity, metric.scale)
        except QuantityNotFinite as error:
            return _reject(event, RejectionReason.INVALID_QUANTITY, str(error))
        except QuantityTooLarge as error:
            return _reject(event, RejectionReason.QUANTITY_TOO_LARGE, f"{metric.metric_type} takes {error}")
        except QuantityTooPrecise as error:
            return _reject(event, RejectionReason.QUANTITY_TOO_PRECISE, f"{metric.metric_type} takes {error}")
        # Control characters make two ids look the same to a person and break logs.
        if event.event_id is not None and not event.event_id.isprintable():
            return _reject(event, RejectionReason.INVALID_EVENT_ID, "event_id holds unprintable characters")
        # A plain event, which nearly all are, is spared the look at what only a correction has.
        if quantity < 0 or event.corrects_event_id is not None or event.reason is not None:
            problem = _correction_problem(event, quantity)
            if problem is not None:
                return problem
        at = arrival.now_ms if event.timestamp is None else milliseconds(event.timestamp)
        if not arrival.earliest_ms <= at <= arrival.latest_ms:
            return _time_problem(event, at, arrival)
        if metric.metadata_key is not None and not (event.metadata or {}).get(metric.metadata_key):
            message = f"{metric.metric_type} needs the metadata key {metric.metadata_key!r}"
            return _reject(event, RejectionReason.METADATA_KEY_MISSING, message)
        metadata = "{}"
        if event.metadata:
            encoded = _encode(event.metadata)
            if len(encoded) > MAX_METADATA_BYTES:
                message = f"{len(encoded)} bytes of metadata, at most {MAX_METADATA_BYTES}"
                return _reject(event, RejectionReason.METADATA_TOO_LARGE, message)
            metadata = encoded.decode()
        return AcceptedEvent(
            arrival.customer_id,
            event.event_id or self.new_event_id(),
            metric.metric_type,
            quantity,
            at,
            arrival.now_us,
            metadata,
            event.corrects_event_id or "",
            event.reason or "",
            arrival.historical,
        )


def _reject(event: UsageEvent, reason: RejectionReason, message: str) -> Rejection:
    return Rejection(reason, message, event.event_id)


def _correction_problem(event: UsageEvent, quantity: int) -> Rejection | None:
    """A correction is a negative quantity, a reason and the id of what it corrects: all three or none."""
    is_described = event.corrects_event_id is not None and event.reason is not None
    if quantity < 0:
        if not is_described:
            message = "a negative quantity is a correction and needs corrects_event_id and reason"
            return _reject(event, RejectionReason.NEGATIVE_WITHOUT_CORRECTION, message)
        if event.corrects_event_id == event.event_id:
            return _reject(event, RejectionReason.INVALID_CORRECTION, "an event can't correct itself")
        return None
    if event.corrects_event_id is not None or event.reason is not None:
        message = "corrects_event_id and reason belong to a correction, whose quantity is negative"
        return _reject(event, RejectionReason.CORRECTION_NOT_NEGATIVE, message)
    return None


def _time_problem(event: UsageEvent, at: int, arrival: Arrival) -> Rejection:
    """Why an event that happened at `at`, in milliseconds, is too early or too late."""
    if at > arrival.latest_ms:
        ahead = (at - arrival.now_ms) // 1000
        limit = (arrival.latest_ms - arrival.now_ms) // 1000
        message = f"timestamp lies {ahead} s in the future, at most {limit} s"
        return _reject(event, RejectionReason.TOO_EARLY, message)
    if arrival.historical:
        return _reject(event, RejectionReason.TOO_LATE, f"timestamp lies before {EPOCH.date()}")
    days = (arrival.now_ms - at) / 86_400_000
    limit_days = (arrival.now_ms - arrival.earliest_ms) / 86_400_000
    message = f"timestamp lies {days:.1f} days back, at most {limit_days:g}"
    return _reject(event, RejectionReason.TOO_LATE, message)
