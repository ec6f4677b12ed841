"""`POST /api/events`: life events of customers, from the site and the console, acknowledged once durable.

Belongs here: the order of the steps and their answers. Does not belong here: the types of events
(`apex_pipelines.metering.life_events`), keys, disk.

Life events travel as metrics of the catalogue, through the spool and landing log of telemetry, so that all
that makes an event count once holds for them too.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from apex_pipelines.metering.life_events import LifeEvent, as_usage_event
from apex_pipelines.metering.rejections import Rejection, RejectionReason
from apex_pipelines.metering.rules import MeteringRules
from apex_pipelines.platform.clock import Clock
from ingest_api.authorization import bearer, require_key
from ingest_api.customer_directory import CustomerDirectory
from ingest_api.database import DatabaseAway
from ingest_api.decoding import decode_life_event
from ingest_api.intake import Intake
from ingest_api.keys import KeyRing
from ingest_api.requests import Request
from ingest_api.responses import HttpError, Response, json_response

_SCOPES = frozenset({"operator"})


class RecordedLifeEvent(msgspec.Struct):
    """The event as it was recorded."""

    customer_id: str
    event_type: str
    event_id: str


class LifeEventAnswer(msgspec.Struct, omit_defaults=True):
    """`duplicate` is present when the event was seen before and is not counted again."""

    success: bool
    recorded: RecordedLifeEvent
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class LifeEventRoutes:
    """The handler, with what it needs."""

    rules: MeteringRules
    keys: KeyRing
    customers: CustomerDirectory
    intake: Intake
    clock: Clock

    async def record(self, request: Request) -> Response:
        """Record one life event."""
        now = self.clock.now()
        # Before the body is looked at: only the operator learns what is wrong with it.
        key = await require_key(self.keys, bearer(request.headers), now, _SCOPES, "report life events")
        event = decode_life_event(request.body)
        if isinstance(event, Rejection):
            raise self.intake.unprocessable(event)
        await self._require_customer(event)
        arrival = self.rules.arrival(event.customer_id, now, historical="historical" in key.scopes)
        verdict = self.rules.judge(as_usage_event(event), arrival)
        if isinstance(verdict, Rejection):
            raise self.intake.unprocessable(verdict)
        is_new = await self.intake.take(verdict, request)
        event_type = str(type(event).__struct_config__.tag)
        recorded = RecordedLifeEvent(event.customer_id, event_type, verdict.event_id)
        return json_response(LifeEventAnswer(True, recorded, not is_new))

    async def _require_customer(self, event: LifeEvent) -> None:
        try:
            known = await self.customers.has(event.customer_id)
        except DatabaseAway as error:
            message = "customers can't be looked up at the moment; send it again with the same event_id"
            raise HttpError(503, "customers_unavailable", message, [("retry-after", "2")]) from error
        if not known:
            message = f"there is no customer {event.customer_id!r}"
            raise self.intake.unprocessable(
                Rejection(RejectionReason.UNKNOWN_CUSTOMER, message, event.event_id)
            )
