"""The lists of what has happened.

Belongs here: `/v1/events` and `/v2/core/events`. Does not belong here: writing events (`account.py`) and
sending them (`deliveries.py`).
"""

from __future__ import annotations

import operator
from datetime import datetime

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid, missing
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import Array, Flag, Given, Group, Integer, Range, Text
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

KEPT_SECONDS = 30 * 86_400
_BOUNDS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


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


@routes.get(
    "/v2/core/events",
    created=Group(gt=Text(), gte=Text(), lt=Text(), lte=Text()),
    limit=Integer(minimum=1),
    object_id=Text(),
    page=Text(),
    types=Array(Text()),
)
def list_thin(account: Account, given: Given) -> Object:
    """Events of /v2, newest first; `page` is the id that the page follows."""
    limit = given.get("limit", 20)
    oldest = account.account_time() - KEPT_SECONDS
    found = [
        body
        for body in reversed(account.store.every("v2.core.event"))
        if _instant(body["created"]) >= oldest
        and ("types" not in given or body["type"] in given["types"])
        and ("object_id" not in given or (body["related_object"] or {}).get("id") == given["object_id"])
        and all(
            _BOUNDS[by](_instant(body["created"]), _instant(value))
            for by, value in given.get("created", {}).items()
        )
    ]
    ids = [body["id"] for body in found]
    first = ids.index(given["page"]) + 1 if given.get("page") in ids else 0
    shown = found[first : first + limit]
    more = len(found) > first + limit
    following = f"/v2/core/events?limit={limit}&page={shown[-1]['id']}" if more else None
    return {"data": shown, "next_page_url": following, "previous_page_url": None}


def _instant(text: str) -> float:
    """Seconds since 1970 of an instant as /v2 writes it."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise invalid(f"Invalid timestamp: {text}", "created") from None


@routes.get("/v2/core/events/{event}")
def retrieve_thin(account: Account, given: Given, event: str) -> Object:
    found = account.store.get("v2.core.event", event)
    if found is None:
        raise Refusal(404, "invalid_request_error", f"No such event: {event}", code="not_found")
    return found
