"""What an object looks like in an answer: with its parts inside, and with what was asked to be expanded.

Belongs here: putting stored objects together. Does not belong here: changing them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page
from apex_pipelines.sandbox.stripe.store import Object

_DEEPEST = 4
_FEW = 10

# What the ids of each type begin with; products, coupons and test objects may have ids of one's own.
_PREFIXES = {
    "ch": "charge", "clock": "test_helpers.test_clock", "cus": "customer", "di": "discount",
    "dp": "dispute", "evt": "event",
    "ii": "invoiceitem", "il": "line_item", "in": "invoice", "inpay": "invoice_payment",
    "mtr": "billing.meter", "pi": "payment_intent", "pm": "payment_method", "price": "price",
    "prod": "product", "re": "refund", "si": "subscription_item", "sub": "subscription",
}  # fmt: skip
_BY_FIELD = {"coupon": "coupon", "product": "product", "customer": "customer", "price": "price"}


def embedded_list(account: Account, object_type: str, url: str, limit: int, **where: str) -> Object:
    """A list inside an object, oldest first, cut off as Stripe does."""
    bodies = account.store.bodies(object_type, where, limit=limit + 1, newest_first=False)
    found = Page(object_type, url, bodies[:limit], len(bodies) > limit)
    return {
        "object": "list",
        "data": [render(account, body) for body in found.objects()],
        "has_more": found.has_more,
        "url": url,
    }


def _price(_: Account, body: Object) -> Object:
    return {key: value for key, value in body.items() if key != "tiers"}


def _item(account: Account, body: Object) -> Object:
    price = account.store.get("price", body["price"])
    if price is None:  # seeded without it
        return body
    return {**body, "plan": _plan(price), "price": _price(account, price)}


def _plan(price: Object) -> Object:
    """A price as the plan that it was called once."""
    same = ("active", "billing_scheme", "created", "currency", "id", "livemode", "metadata", "nickname",
            "product", "tiers_mode")  # fmt: skip
    recurring = price.get("recurring") or {}
    terms = ("interval", "interval_count", "meter", "trial_period_days", "usage_type")
    return {
        "object": "plan",
        "amount": price.get("unit_amount"),
        "amount_decimal": price.get("unit_amount_decimal"),
        "transform_usage": price.get("transform_quantity"),
        **{name: price.get(name) for name in same},
        **{name: recurring.get(name) for name in terms},
    }


def _subscription(account: Account, body: Object) -> Object:
    url = f"/v1/subscription_items?subscription={body['id']}"
    return {**body, "items": embedded_list(account, "subscription_item", url, 20, subscription=body["id"])}


def _invoice(account: Account, body: Object) -> Object:
    url = f"/v1/invoices/{body['id']}/lines"
    return {**body, "lines": embedded_list(account, "line_item", url, _FEW, invoice=body["id"])}


RENDERERS: dict[str, Callable[[Account, Object], Object]] = {
    "price": _price,
    "subscription_item": _item,
    "subscription": _subscription,
    "invoice": _invoice,
}


def render(account: Account, body: Object) -> Object:
    """An object as Stripe shows it when nothing is asked to be expanded."""
    renderer = RENDERERS.get(body.get("object", ""))
    return body if renderer is None or body.get("deleted") else renderer(account, body)


def _included(account: Account, body: Object, name: str) -> Any:
    """What is in an object only when it is asked for; None when there is no such field."""
    kind, own = body.get("object"), str(body.get("id"))
    if (kind, name) == ("price", "tiers"):
        stored = account.need("price", own)
        return stored.get("tiers", [])
    lists = {
        ("customer", "subscriptions"): ("subscription", "customer", f"/v1/customers/{own}/subscriptions"),
        ("invoice", "payments"): ("invoice_payment", "invoice", f"/v1/invoice_payments?invoice={own}"),
        ("charge", "refunds"): ("refund", "charge", f"/v1/charges/{own}/refunds"),
    }
    if (kind, name) not in lists:
        return None
    object_type, by, url = lists[kind, name]  # type: ignore[index]
    return embedded_list(account, object_type, url, _FEW, **{by: own})


def expand(account: Account, body: Any, paths: list[str], *, in_list: bool = False) -> None:
    """Put objects in the place of their ids, along paths such as `latest_invoice.payments`.

    Raises
    ------
    Refusal
        If a path leads nowhere or too deep.
    """
    for path in paths:
        parts = path.split(".")
        if len(parts) - (1 if in_list else 0) > _DEEPEST:
            raise invalid(f"You cannot expand more than {_DEEPEST} levels of a property ({path}).", "expand")
        _expand(account, body, parts, path)


def _expand(account: Account, place: Any, parts: list[str], path: str) -> None:
    if isinstance(place, list):
        for each in place:
            _expand(account, each, parts, path)
        return
    if not parts or not isinstance(place, dict):
        return
    name, rest = parts[0], parts[1:]
    value = place.get(name)
    if isinstance(value, str):
        object_type = _BY_FIELD.get(name) or _PREFIXES.get(value.split("_", 1)[0])
        found = None if object_type is None else account.store.get(object_type, value)
        if found is None:
            raise invalid(f"This property cannot be expanded ({path}).", "expand")
        place[name] = render(account, found)
    elif isinstance(value, list) and value and isinstance(value[0], str):
        place[name] = [_found(account, each, path) for each in value]
    elif name not in place:
        included = _included(account, place, name)
        if included is None:
            raise invalid(f"This property cannot be expanded ({path}).", "expand")
        place[name] = included
    _expand(account, place[name], rest, path)


def _found(account: Account, object_id: str, path: str) -> Object:
    object_type = _PREFIXES.get(object_id.split("_", 1)[0])
    found = None if object_type is None else account.store.get(object_type, object_id)
    if found is None:
        raise invalid(f"This property cannot be expanded ({path}).", "expand")
    return render(account, found)
