"""Test clocks: a time of their own for some customers.

Belongs here: `/v1/test_helpers/test_clocks`. Does not belong here: the account's own time (`control.py`).

Stripe advances a clock in the background, with the status `advancing`; here it is ready when it answers.
Events that happen by a test clock bear its time.
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe import due, subscriptions
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import Given, Integer, Required, Text
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_KEPT_SECONDS = 30 * 86_400


@routes.post("/v1/test_helpers/test_clocks", frozen_time=Required(Integer()), name=Text(300))
def create(account: Account, given: Given) -> Object:
    body: Object = {
        "id": account.new_id("clock"),
        "object": "test_helpers.test_clock",
        "created": account.now,
        "deletes_after": account.now + _KEPT_SECONDS,
        "frozen_time": given["frozen_time"],
        "livemode": False,
        "name": given.get("name"),
        "status": "ready",
        "status_details": {},
    }
    return account.create(body)


@routes.get("/v1/test_helpers/test_clocks/{clock}")
def retrieve(account: Account, given: Given, clock: str) -> Object:
    return account.need("test_helpers.test_clock", clock)


@routes.post("/v1/test_helpers/test_clocks/{clock}/advance", frozen_time=Required(Integer()))
def advance(account: Account, given: Given, clock: str) -> Object:
    body = account.need("test_helpers.test_clock", clock)
    to = given["frozen_time"]
    if to <= body["frozen_time"]:
        raise invalid("A test clock's time moves only forward.", "frozen_time")
    due.advance(account, clock, to)
    return account.change(
        account.need("test_helpers.test_clock", clock), "test_helpers.test_clock.ready", frozen_time=to
    )


@routes.delete("/v1/test_helpers/test_clocks/{clock}")
def delete(account: Account, given: Given, clock: str) -> Object:
    """Delete a clock with its customers and all that they have."""
    body = account.need("test_helpers.test_clock", clock)
    for customer in account.store.every("customer", test_clock=clock):
        account.live_by(clock)
        subscriptions.cancel_all(account, customer["id"])
        account.delete(customer)
    return account.delete(body)


@routes.list("/v1/test_helpers/test_clocks")
def list_all(account: Account, given: Given) -> Page:
    return page(account, "test_helpers.test_clock", "/v1/test_helpers/test_clocks", given)
