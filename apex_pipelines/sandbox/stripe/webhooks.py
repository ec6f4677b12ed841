"""Webhook endpoints, and the signature of what is sent to them.

Belongs here: `/v1/webhook_endpoints`, signing. Does not belong here: sending (`deliveries.py`).

All endpoints share the secret that the stand-in prints, so that it can be set before there is an endpoint. An
endpoint gets snapshot events and those of /v2 alike, for which Stripe has event destinations.
"""

from __future__ import annotations

import hashlib
import hmac

from apex_pipelines.sandbox.stripe.account import API_VERSION, Account
from apex_pipelines.sandbox.stripe.catalogue import plain_changes
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    Array,
    Flag,
    Given,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()


def signature(secret: str, body: bytes, at: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 of the time and the body."""
    signed = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={signed}"


@routes.post(
    "/v1/webhook_endpoints",
    api_version=Text(),
    description=Text(unset=True),
    enabled_events=Required(Array(Text())),
    metadata=TextMap(),
    url=Required(Text()),
)
def create(account: Account, given: Given) -> Object:
    body: Object = {
        "id": account.new_id("we"),
        "object": "webhook_endpoint",
        "api_version": given.get("api_version", API_VERSION),
        "application": None,
        "created": account.now,
        "description": given.get("description"),
        "enabled_events": given["enabled_events"],
        "livemode": False,
        "metadata": merged_metadata({}, given),
        "status": "enabled",
        "url": given["url"],
    }
    account.create(body, quiet=True)
    # Shown once, as Stripe does.
    return {**body, "secret": account.webhook_secret}


@routes.get("/v1/webhook_endpoints/{endpoint}")
def retrieve(account: Account, given: Given, endpoint: str) -> Object:
    return account.need("webhook_endpoint", endpoint)


@routes.post(
    "/v1/webhook_endpoints/{endpoint}",
    description=Text(unset=True),
    disabled=Flag(),
    enabled_events=Array(Text()),
    metadata=TextMap(),
    url=Text(),
)
def update(account: Account, given: Given, endpoint: str) -> Object:
    body = account.need("webhook_endpoint", endpoint)
    changes = plain_changes(body, given, "description", "enabled_events", "url")
    if "disabled" in given:
        changes["status"] = "disabled" if given["disabled"] else "enabled"
    return account.change(body, "", **changes)


@routes.delete("/v1/webhook_endpoints/{endpoint}")
def delete(account: Account, given: Given, endpoint: str) -> Object:
    body = account.need("webhook_endpoint", endpoint)
    account.store.remove("webhook_endpoint", endpoint)
    return {"id": body["id"], "object": body["object"], "deleted": True}


@routes.list("/v1/webhook_endpoints")
def list_all(account: Account, given: Given) -> Page:
    return page(account, "webhook_endpoint", "/v1/webhook_endpoints", given)
