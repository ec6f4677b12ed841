"""Subscriptions that change: plans, trials, pauses, ends to come.

Belongs here: updates of a subscription and of its items. Does not belong here: making and canceling one
(`subscriptions.py`), and what a change is worth (`prorations.py`).
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe import (
    catalogue,
    discounts,
    invoices,
    prorations,
    renewals,
    standing,
    subscriptions,
)
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid, missing
from apex_pipelines.sandbox.stripe.parameters import (
    Array,
    Flag,
    Given,
    Group,
    Integer,
    Required,
    Text,
    Unset,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.periods import period_at
from apex_pipelines.sandbox.stripe.rendering import render
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_CHANGED_ITEM = subscriptions.ITEM.plus(clear_usage=Flag(), deleted=Flag(), id=Text())


@routes.post(
    "/v1/subscriptions/{subscription}",
    subscriptions.SHARED,
    billing_cycle_anchor=Text(choices=("now", "unchanged")),
    cancellation_details=Group(comment=Text(unset=True), feedback=Text(unset=True)),
    items=Array(_CHANGED_ITEM),
    pause_collection=Unset(
        Group(
            behavior=Required(Text(choices=("keep_as_draft", "mark_uncollectible", "void"))),
            resumes_at=Integer(),
        )
    ),
    proration_date=Integer(),
)
def update(account: Account, given: Given, subscription: str) -> Object:
    body = subscriptions.need_open(account, subscription)
    before = render(account, body)
    proration = given.get("proration_behavior", "create_prorations")
    for number, change in enumerate(given.get("items", [])):
        _change_item(account, body, change, proration, f"items[{number}]", given.get("proration_date"))
    changes = catalogue.plain_changes(body, given, *subscriptions.PLAIN)
    if given.get("default_payment_method") is not None:
        changes["default_payment_method"] = subscriptions.own_card(account, body["customer"], given)
    if "discounts" in given:
        changes["discounts"] = discounts.redeem(account, body["customer"], subscription, given["discounts"])
    if "cancel_at_period_end" in given:
        changes |= _cancels_at_end(account, body, given["cancel_at_period_end"])
    if "cancellation_details" in given:
        changes["cancellation_details"] = {**body["cancellation_details"], **given["cancellation_details"]}
    if "pause_collection" in given:
        changes["pause_collection"] = _paused(account, subscription, given["pause_collection"])
    body = account.change(body, "", **changes)
    body = _move(account, body, given)
    body = account.need("subscription", subscription)
    after = render(account, body)
    previous = {key: before[key] for key in after if before.get(key) != after[key]}
    if previous:
        account.emit("customer.subscription.updated", body, previous)
    renewals.plan_ahead(account, body)
    if proration == "always_invoice" and "items" in given and body["status"] in ("active", "past_due"):
        renewals.bill_now(account, body)
    return account.need("subscription", subscription)


def _cancels_at_end(account: Account, body: Object, wanted: bool) -> Object:
    end = renewals.items_of(account, body["id"])[0]["current_period_end"]
    reason = "cancellation_requested" if wanted else None
    return {
        "cancel_at": end if wanted else None,
        "cancel_at_period_end": wanted,
        "canceled_at": account.now if wanted else None,
        "cancellation_details": {**body["cancellation_details"], "reason": reason},
    }


def _paused(account: Account, subscription: str, given: Given | None) -> Object | None:
    resumes_at = None if given is None else given.get("resumes_at")
    account.schedule("resume_collection", subscription, resumes_at)
    return None if given is None else {"behavior": given["behavior"], "resumes_at": resumes_at}


def resume_collection(account: Account, subscription: str) -> None:
    """The end of a pause: later drafts advance by themselves again."""
    body = account.need("subscription", subscription)
    if body["status"] not in standing.ENDED:
        account.change(body, "customer.subscription.updated", pause_collection=None)


def _move(account: Account, body: Object, given: Given) -> Object:
    """End or prolong a trial, or let the periods begin now."""
    trial_end = given.get("trial_end")
    items = renewals.items_of(account, body["id"])
    if trial_end == "now" and body["status"] == "trialing":
        body = account.change(body, "", trial_end=account.now, billing_cycle_anchor=account.now)
        ended = (items[0]["current_period_start"], account.now)
        return _begin_now(account, body, items, ended, trial=True)
    if trial_end is not None and trial_end != "now":
        if trial_end <= account.now:
            raise invalid("Timestamp must be an integer Unix timestamp in the future.", "trial_end")
        for item in items:
            account.change(item, "", current_period_end=trial_end)
        return account.change(
            body,
            "",
            billing_cycle_anchor=trial_end,
            status="trialing",
            trial_end=trial_end,
            trial_start=body["trial_start"] or account.now,
        )
    if given.get("billing_cycle_anchor") == "now":
        if given.get("proration_behavior", "create_prorations") != "none":
            for item in items:
                prorations.credit(account, body, item)
        ended = (items[0]["current_period_start"], account.now)
        body = account.change(body, "", billing_cycle_anchor=account.now)
        return _begin_now(account, body, items, ended, trial=False)
    return body


def _begin_now(
    account: Account, body: Object, items: list[Object], ended: tuple[int, int], *, trial: bool
) -> Object:
    """A new period from now on, with its invoice collected at once."""
    following = period_at(account.now, renewals.interval_of(account, body["id"]), account.now)
    for item in items:
        account.change(item, "", current_period_start=following[0], current_period_end=following[1])
    body = renewals.renew(account, body, ended, following, trial=trial)
    draft = account.need("invoice", body["latest_invoice"])
    if draft["status"] == "draft" and draft["auto_advance"]:
        invoices.collect(account, invoices.finalize(account, draft))
    return body


def _change_item(
    account: Account, body: Object, change: Given, proration: str, name: str, at: int | None = None
) -> Object:
    """Add, change or remove one item of a subscription, with what that is worth."""
    items = renewals.items_of(account, body["id"])
    period = (items[0]["current_period_start"], items[0]["current_period_end"])
    pays = proration != "none" and body["status"] in ("active", "past_due")
    if "id" not in change:
        price = subscriptions.price_of(account, change, name)
        item = subscriptions.add_item(account, body, change, price, period)
        account.store.put(item, {"since": account.now})
        if pays:
            prorations.debit(account, body, item, at)
        return item
    item = account.need("subscription_item", change["id"], f"{name}[id]")
    if item["subscription"] != body["id"]:
        raise missing("subscription_item", change["id"], f"{name}[id]")
    if change.get("deleted"):
        if len(items) == 1:
            raise invalid("A subscription must have at least one active plan.", name)
        if pays:
            prorations.credit(account, body, item, at)
        stub = {"id": item["id"], "object": "subscription_item", "deleted": True}
        account.store.put({**stub, "created": item["created"]})
        return stub
    return _replace_item(account, body, item, change, (proration, name), at if pays else None, pays=pays)


def _replace_item(
    account: Account,
    body: Object,
    item: Object,
    change: Given,
    words: tuple[str, str],
    at: int | None,
    *,
    pays: bool,
) -> Object:
    changes: dict[str, Any] = {"metadata": merged_metadata(item["metadata"], change)}
    price = account.need("price", item["price"])
    if "price" in change or "price_data" in change:
        price = subscriptions.price_of(account, change, words[1])
        if _interval(price["recurring"]) != _interval(renewals.interval_of(account, body["id"])):
            raise invalid("This stand-in keeps the interval of a subscription.", words[1])
        changes["price"] = price["id"]
    if "quantity" in change:
        changes["quantity"] = change["quantity"]
    metered = price["recurring"]["usage_type"] == "metered"
    if not metered:
        changes.setdefault("quantity", item.get("quantity", 1))
    if pays:
        prorations.credit(account, body, item, at)
    changed = account.change(item, "", **changes)
    if changed["price"] != item["price"]:
        account.store.put(changed, {"since": account.now})
    if pays:
        prorations.debit(account, body, changed, at)
    return changed


def _interval(recurring: Object) -> tuple[str, int]:
    return recurring["interval"], recurring["interval_count"]


@routes.post(
    "/v1/subscriptions/{subscription}/resume",
    billing_cycle_anchor=Text(choices=("now", "unchanged")),
    proration_behavior=subscriptions.PRORATION,
)
def resume(account: Account, given: Given, subscription: str) -> Object:
    """Go on with a subscription whose trial ended without a card."""
    body = subscriptions.need_open(account, subscription)
    if body["status"] != "paused":
        raise invalid("Only paused subscriptions can be resumed.")
    body = account.change(body, "", status="active", billing_cycle_anchor=account.now)
    items = renewals.items_of(account, subscription)
    _begin_now(account, body, items, (account.now, account.now), trial=False)
    body = account.need("subscription", subscription)
    account.emit("customer.subscription.resumed", body)
    return body


@routes.post(
    "/v1/subscription_items",
    subscriptions.ITEM,
    payment_behavior=Text(),
    proration_behavior=subscriptions.PRORATION,
    proration_date=Integer(),
    subscription=Required(Text()),
)
def create_item(account: Account, given: Given) -> Object:
    return _item_request(account, given["subscription"], given)


@routes.post(
    "/v1/subscription_items/{item}",
    subscriptions.ITEM,
    off_session=Flag(),
    payment_behavior=Text(),
    proration_behavior=subscriptions.PRORATION,
    proration_date=Integer(),
)
def update_item(account: Account, given: Given, item: str) -> Object:
    found = account.need("subscription_item", item)
    return _item_request(account, found["subscription"], {**given, "id": item})


@routes.delete(
    "/v1/subscription_items/{item}",
    clear_usage=Flag(),
    proration_behavior=subscriptions.PRORATION,
    proration_date=Integer(),
)
def delete_item(account: Account, given: Given, item: str) -> Object:
    found = account.need("subscription_item", item)
    return _item_request(account, found["subscription"], {**given, "id": item, "deleted": True})


def _item_request(account: Account, subscription: str, given: Given) -> Object:
    """One item, as an update of its subscription."""
    shared = ("proration_behavior", "proration_date")
    known = {item["id"] for item in renewals.items_of(account, subscription)}
    change = {key: value for key, value in given.items() if key in _CHANGED_ITEM.fields}
    more = {key: given[key] for key in shared if key in given}
    update(account, {"items": [change], **more}, subscription)
    if "id" in given:
        return account.need("subscription_item", given["id"], deleted=True)
    return next(item for item in renewals.items_of(account, subscription) if item["id"] not in known)
