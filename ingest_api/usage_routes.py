"""`POST /api/usage/track` and `/batch`: events in, acknowledged once they are durable.

Belongs here: the order of the steps and their answers. Does not belong here: which events count
(`apex_pipelines.metering`), keys, disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import msgspec

from apex_pipelines.metering.events import AcceptedEvent, UsageEvent
from apex_pipelines.metering.quantity import from_storage
from apex_pipelines.metering.rejections import Rejection, RejectionReason
from apex_pipelines.metering.rules import Arrival, MeteringRules
from apex_pipelines.platform.clock import Clock
from ingest_api import metrics
from ingest_api.authorization import bearer, require_key
from ingest_api.decoding import decode_api_key, decode_batch, decode_track
from ingest_api.intake import Intake
from ingest_api.key_lookup import KeyRecord
from ingest_api.keys import KeyRing
from ingest_api.rate_limit import KeyRates, RateExceeded
from ingest_api.requests import Request
from ingest_api.responses import HttpError, Response, json_response

# `historical` lifts the limit on late events; a key that has only that may send events as well.
_INGEST_SCOPES = frozenset({"ingest", "historical"})
_HISTORICAL = "historical"


class Recorded(msgspec.Struct):
    """The event as it was recorded; the quantity in the metric's unit."""

    customer_id: str
    metric_type: str
    quantity: int | Decimal
    event_id: str


class TrackAnswer(msgspec.Struct, omit_defaults=True):
    """Answer to `track`; `duplicate` is present when the event was seen before and is not counted again."""

    success: bool
    recorded: Recorded
    duplicate: bool = False


class EventResult(msgspec.Struct, omit_defaults=True):
    """What became of one event of a batch."""

    event_id: str | None
    status: Literal["accepted", "duplicate", "rejected"]
    reason: RejectionReason | None = None
    message: str | None = None


class BatchAnswer(msgspec.Struct):
    """Answer to `batch`: results in the order of the events; `success` when none was rejected."""

    success: bool
    accepted: int
    duplicates: int
    rejected: int
    results: list[EventResult]


@dataclass(frozen=True, slots=True)
class UsageRoutes:
    """Handlers of the usage endpoints, with what they need."""

    rules: MeteringRules
    keys: KeyRing
    rates: KeyRates
    intake: Intake
    clock: Clock
    max_batch_events: int

    async def track(self, request: Request) -> Response:
        """Record one event."""
        key = await self._key(request)
        arrival = self._arrival(key)
        event = decode_track(request.body)
        if isinstance(event, Rejection):
            raise self.intake.unprocessable(event)
        self._limit(key, 1)
        verdict = self.rules.judge(event, arrival)
        if isinstance(verdict, Rejection):
            raise self.intake.unprocessable(verdict)
        try:
            is_new = await self.intake.take(verdict, request)
        except HttpError:
            self.rates.give_back(key.digest, 1)
            raise
        scale = self.rules.metrics[verdict.metric_type].scale
        quantity = from_storage(verdict.quantity, scale).normalize() if scale else verdict.quantity
        recorded = Recorded(verdict.customer_id, verdict.metric_type, quantity, verdict.event_id)
        return json_response(TrackAnswer(True, recorded, not is_new))

    async def batch(self, request: Request) -> Response:
        """Record the good events of a batch and say what became of each."""
        key = await self._key(request)
        arrival = self._arrival(key)
        events = decode_batch(request.body, _content_type(request), self.max_batch_events)
        self._limit(key, len(events))
        recent, counters = self.intake.recent, self.intake.counters
        results: list[EventResult] = []
        fresh: dict[str, AcceptedEvent] = {}
        for event in events:
            verdict = self._judge(event, arrival)
            if isinstance(verdict, Rejection):
                counters.add(metrics.REJECTED[verdict.reason])
                results.append(EventResult(verdict.event_id, "rejected", verdict.reason, verdict.message))
            elif verdict.event_id in fresh or verdict in recent:
                results.append(EventResult(verdict.event_id, "duplicate"))
            else:
                fresh[verdict.event_id] = verdict
                results.append(EventResult(verdict.event_id, "accepted"))
        if fresh:
            try:
                await self.intake.make_durable(list(fresh.values()), request)
            except HttpError:
                self.rates.give_back(key.digest, len(fresh))
                raise
        rejected = sum(1 for result in results if result.status == "rejected")
        duplicates = len(results) - rejected - len(fresh)
        counters.add(metrics.DUPLICATE, duplicates)
        return json_response(BatchAnswer(rejected == 0, len(fresh), duplicates, rejected, results))

    def _judge(self, event: UsageEvent | Rejection, arrival: Arrival) -> AcceptedEvent | Rejection:
        return event if isinstance(event, Rejection) else self.rules.judge(event, arrival)

    async def _key(self, request: Request) -> KeyRecord:
        # Before the events are looked at: what costs most is done for customers only.
        key = bearer(request.headers) or decode_api_key(request.body, _content_type(request))
        return await require_key(self.keys, key, self.clock.now(), _INGEST_SCOPES, "send usage events")

    def _arrival(self, key: KeyRecord) -> Arrival:
        if key.customer_id is None:
            raise HttpError(403, "scope_missing", "a key of the operator may not send usage events")
        return self.rules.arrival(key.customer_id, self.clock.now(), historical=_HISTORICAL in key.scopes)

    def _limit(self, key: KeyRecord, events: int) -> None:
        if _HISTORICAL in key.scopes:
            return  # an import of ours, not an app in the field; the spool alone slows it
        try:
            self.rates.take(key.digest, events)
        except RateExceeded as error:
            self.intake.counters.add(metrics.THROTTLED["key_rate"])
            seconds = max(1, math.ceil(error.wait))
            rate, burst = round(self.rates.per_second), round(self.rates.burst)
            headers = [
                ("retry-after", str(seconds)),
                ("ratelimit-limit", str(burst)),
                ("ratelimit-remaining", str(error.left)),
                ("ratelimit-reset", str(seconds)),
                ("ratelimit-policy", f"{rate};w=1;burst={burst}"),
            ]
            message = (
                f"nothing was recorded: this API key may send {rate} events a second and {burst} at once, "
                f"{error.left} more now; send it again in {seconds} s with the same event_id"
            )
            raise HttpError(429, "rate_limited", message, headers) from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type") or ""
