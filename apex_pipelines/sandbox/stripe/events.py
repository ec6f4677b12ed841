"""The lists of what has happened.

Belongs here: `/v1/events` and `/v2/core/events`. Does not belong here: writing events (`account.py`) and
sending them (`deliveries.py`).
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid, missing
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import Array, Flag, Given, Range, Text
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

KEPT_SECONDS = 30 * 86_400


@routes.list("/v1/events", created=Range(), delivery_success=Flag(), type=Text(), types=Array(Text()))
def list_all(account: Account, given: Given) -> Page:
    """Events of the last 30 days; `type` may end in `*`."""
    if "type" in given and "types" in given:
        raise invalid("You may only specify one of these parameters: type, types.", "type")
    types = given.get("types") or ([given["type"]] if "type" in given else None)
    if types is not None and any("*" in name for name in types):
        known = {row[0] for row in account.store.connection.execute(
            "select distinct json_extract(body, '$.type') from objects where type = 'event' and deleted = 0"
        )}  # fmt: skip
        types = [name for name in known if any(_matches(name, asked) for asked in types)] or types
    oldest = account.account_time() - KEPT_SECONDS
    return page(account, "event", "/v1/events", given, {"type": types}, since=oldest)


def _matches(name: str, asked: str) -> bool:
    return name.startswith(asked[:-1]) if asked.endswith("*") else name == asked


@routes.get("/v1/events/{event}")
def retrieve(account: Account, given: Given, event: str) -> Object:
    found = account.need("event", event)
    if found["created"] < account.account_time() - KEPT_SECONDS:
        raise missing("event", event)
    return found


@routes.get("/v2/core/events/{event}")
def retrieve_thin(account: Account, given: Given, event: str) -> Object:
    found = account.store.get("v2.core.event", event)
    if found is None:
        raise Refusal(404, "invalid_request_error", f"No such event: {event}", code="not_found")
    return found
