"""`POST /webhooks/stripe` and `/webhooks/resend`: signature checked, stored once, then 200.

Belongs here: the order of the steps and their answers. Does not belong here: signing
(`apex_pipelines.webhooks.signatures`), SQL (`webhook_inbox`), what an event means (who processes the inbox).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from apex_pipelines.platform.clock import Clock
from apex_pipelines.webhooks.signatures import BadSignature, verify_stripe, verify_svix
from ingest_api.database import DatabaseAway
from ingest_api.requests import Request
from ingest_api.responses import HttpError, Response, json_response
from ingest_api.webhook_inbox import Webhook, WebhookInbox

T = TypeVar("T")
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class StripeEvent(msgspec.Struct):
    """The fields of Stripe's events that the inbox needs; all others are kept in the payload."""

    id: _Name
    type: _Name


class ResendEvent(msgspec.Struct):
    """The field of Resend's events that the inbox needs; the event's id is the header svix-id."""

    type: _Name


class WebhookAnswer(msgspec.Struct):
    """`duplicate`: it had been stored before."""

    received: bool
    duplicate: bool


_decode_stripe = msgspec.json.Decoder(StripeEvent).decode
_decode_resend = msgspec.json.Decoder(ResendEvent).decode


@dataclass(frozen=True, slots=True)
class WebhookRoutes:
    """Handlers of the webhooks; a secret that is None is not set up yet."""

    inbox: WebhookInbox
    clock: Clock
    stripe_secret: str | None
    resend_secret: str | None

    async def stripe(self, request: Request) -> Response:
        """Store an event of Stripe."""
        secret = _require_secret(self.stripe_secret, "STRIPE_WEBHOOK_SECRET")
        try:
            verify_stripe(request.body, request.headers.get("stripe-signature"), secret, self.clock.now())
        except BadSignature as error:
            raise _refused(error) from error
        event = _decoded(_decode_stripe, request.body)
        return await self._store(Webhook("stripe", event.id, event.type, request.body))

    async def resend(self, request: Request) -> Response:
        """Store an event of Resend."""
        secret = _require_secret(self.resend_secret, "RESEND_WEBHOOK_SECRET")
        names = ("svix-id", "svix-timestamp", "svix-signature")
        headers = {name: request.headers.get(name) for name in names}
        try:
            event_id = verify_svix(request.body, headers, secret, self.clock.now())
        except BadSignature as error:
            raise _refused(error) from error
        event = _decoded(_decode_resend, request.body)
        return await self._store(Webhook("resend", event_id, event.type, request.body))

    async def _store(self, webhook: Webhook) -> Response:
        if not (webhook.event_id.isprintable() and webhook.event_type.isprintable()):
            raise HttpError(400, "invalid_webhook", "the event's id or type holds unprintable characters")
        try:
            is_new = await self.inbox.store(webhook, self.clock.now())
        except DatabaseAway as error:
            message = "the event could not be stored; send it again"
            raise HttpError(503, "inbox_unavailable", message, [("retry-after", "10")]) from error
        return json_response(WebhookAnswer(received=True, duplicate=not is_new))


def _require_secret(secret: str | None, name: str) -> str:
    if secret is None:
        # 503 and not 404: providers go on sending for days, so that nothing is lost until it is set.
        raise HttpError(503, "webhook_not_configured", f"{name} is not set", [("retry-after", "3600")])
    return secret


def _refused(error: BadSignature) -> HttpError:
    return HttpError(400, "bad_signature", str(error))


def _decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        body.decode()  # the decoder skips what it does not need, and the inbox keeps the whole
        return decode(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "invalid_webhook", f"signed, but no event: {error}") from error
