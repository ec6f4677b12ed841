"""`POST /api/usage/track` and `/batch`: events in, acknowledged once they are durable.

Belongs here: the order of the steps and their answers. Does not belong here: which events count
(`apex_pipelines.metering`), keys, disk.
"""

from __future__ import annotations

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
from ingest_api.decoding import decode_batch, decode_track
from ingest_api.key_lookup import KeyRecord, KeysUnavailable
from ingest_api.keys import KeyProblem, KeyRefused, KeyRing
from ingest_api.recent_events import RecentEvents
from ingest_api.request_body import RequestHeaders
from ingest_api.responses import HttpError, Response, json_response
from ingest_api.spool.group_commit import SpoolFull, SpoolUnavailable, SpoolWriter

# `historical` lifts the limit on late events; a key that has only that may send events as well.
_INGEST_SCOPES = frozenset({"ingest", "historical"})
_KEY_MESSAGES = {
    KeyProblem.MISSING: "send the API key as `Authorization: Bearer apx_...` or as api_key in the body",
    KeyProblem.UNKNOWN: "there is no such API key",
    KeyProblem.REVOKED: "this API key has been revoked",
    KeyProblem.EXPIRED: "this API key has expired",
}

_encode_rows = msgspec.msgpack.Encoder().encode


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
    spool: SpoolWriter
    recent: RecentEvents
    counters: metrics.Counters
    clock: Clock
    max_batch_events: int

    async def track(self, headers: RequestHeaders, body: bytes) -> Response:
        """Record one event."""
        event = decode_track(body)
        if isinstance(event, Rejection):
            raise self._unprocessable(event)
        arrival = await self._arrival(headers, event.api_key)
        verdict = self.rules.judge(event, arrival)
        if isinstance(verdict, Rejection):
            raise self._unprocessable(verdict)
        is_duplicate = verdict in self.recent
        if is_duplicate:
            self.counters.add(metrics.DUPLICATE)
        else:
            await self._make_durable([verdict])
        scale = self.rules.metrics[verdict.metric_type].scale
        quantity = from_storage(verdict.quantity, scale).normalize() if scale else verdict.quantity
        recorded = Recorded(verdict.customer_id, verdict.metric_type, quantity, verdict.event_id)
        return json_response(TrackAnswer(True, recorded, is_duplicate))

    async def batch(self, headers: RequestHeaders, body: bytes) -> Response:
        """Record the good events of a batch and say what became of each."""
        batch = decode_batch(body, headers.get("content-type") or "", self.max_batch_events)
        arrival = await self._arrival(headers, batch.api_key)
        results: list[EventResult] = []
        fresh: dict[str, AcceptedEvent] = {}
        for event in batch.events:
            verdict = self._judge(event, arrival)
            if isinstance(verdict, Rejection):
                self.counters.add(metrics.REJECTED[verdict.reason])
                results.append(EventResult(verdict.event_id, "rejected", verdict.reason, verdict.message))
            elif verdict.event_id in fresh or verdict in self.recent:
                results.append(EventResult(verdict.event_id, "duplicate"))
            else:
                fresh[verdict.event_id] = verdict
                results.append(EventResult(verdict.event_id, "accepted"))
        if fresh:
            await self._make_durable(list(fresh.values()))
        rejected = sum(1 for result in results if result.status == "rejected")
        duplicates = len(results) - rejected - len(fresh)
        self.counters.add(metrics.DUPLICATE, duplicates)
        return json_response(BatchAnswer(rejected == 0, len(fresh), duplicates, rejected, results))

    def _judge(self, event: UsageEvent | Rejection, arrival: Arrival) -> AcceptedEvent | Rejection:
        return event if isinstance(event, Rejection) else self.rules.judge(event, arrival)

    async def _arrival(self, headers: RequestHeaders, body_key: str | None) -> Arrival:
        now = self.clock.now()
        try:
            record: KeyRecord = await self.keys.resolve(_bearer(headers) or body_key, now)
        except KeyRefused as error:
            message = _KEY_MESSAGES[error.problem]
            raise HttpError(401, error.problem, message, [("www-authenticate", "Bearer")]) from error
        except KeysUnavailable as error:
            message = "API keys can't be checked at the moment; send it again"
            raise HttpError(503, "keys_unavailable", message, [("retry-after", "2")]) from error
        if not record.scopes & _INGEST_SCOPES:
            raise HttpError(403, "scope_missing", "this API key may not send usage events")
        return self.rules.arrival(record.customer_id, now, historical="historical" in record.scopes)

    async def _make_durable(self, events: list[AcceptedEvent]) -> None:
        rows = _encode_rows(events)
        try:
            await self.spool.append(rows, len(events))
        except SpoolUnavailable as error:
            code = "spool_full" if isinstance(error, SpoolFull) else "storage_unavailable"
            headers = [("retry-after", str(error.retry_after))]
            message = f"nothing was recorded: {error}; send it again with the same event_id"
            raise HttpError(503, code, message, headers) from error
        self.recent.remember(events)
        self.counters.add(metrics.ACCEPTED, len(events))
        self.counters.add(metrics.BYTES, len(rows))

    def _unprocessable(self, rejection: Rejection) -> HttpError:
        self.counters.add(metrics.REJECTED[rejection.reason])
        return HttpError(422, rejection.reason, rejection.message)


def _bearer(headers: RequestHeaders) -> str | None:
    """The key in the Authorization header; it wins over the one in the body."""
    header = headers.get("authorization")
    if header is None:
        return None
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
