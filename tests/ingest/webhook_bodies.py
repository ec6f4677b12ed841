"""What the providers send, signed as they sign it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

STRIPE_SECRET = "whsec_test_stripe_0123456789"
RESEND_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRETS = {"STRIPE_WEBHOOK_SECRET": STRIPE_SECRET, "RESEND_WEBHOOK_SECRET": RESEND_SECRET}
NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())  # where the settings of these tests let time stand


def stripe_headers(body: bytes, *, at: int = NOW, secret: str = STRIPE_SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={at},v1={digest}", "content-type": "application/json"}


def resend_headers(
    body: bytes, *, message: str = "msg_1", at: int = NOW, secret: str = RESEND_SECRET
) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "svix-id": message,
        "svix-timestamp": str(at),
        "svix-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def stripe_event(event_id: str = "evt_1", **more: Any) -> bytes:
    return json.dumps({"id": event_id, "type": "invoice.paid", **more}).encode()
