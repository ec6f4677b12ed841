"""Coupons at work.

Belongs here: discounts of a subscription and what they take off an invoice. Does not belong here: coupons
themselves (`catalogue.py`).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.parameters import Given
from apex_pipelines.sandbox.stripe.periods import boundary
from apex_pipelines.sandbox.stripe.pricing import whole_cents
from apex_pipelines.sandbox.stripe.store import Object


def redeem(account: Account, customer: str, subscription: str, given: list[Given]) -> list[str]:
    """Discounts for the coupons that a subscription is given; returns their ids."""
    ids = []
    for each in given:
        coupon = account.need("coupon", each["coupon"], "discounts[0][coupon]")
        if not coupon["valid"] or (coupon["redeem_by"] or account.now) < account.now:
            raise invalid(f"This coupon has expired: {coupon['id']}", "discounts", "coupon_expired")
        redeemed = coupon["times_redeemed"] + 1
        usable = coupon["max_redemptions"] is None or redeemed < coupon["max_redemptions"]
        account.change(coupon, times_redeemed=redeemed, valid=usable)
        ids.append(_discount(account, coupon, customer, subscription)["id"])
    return ids


def _discount(account: Account, coupon: Object, customer: str, subscription: str) -> Object:
    end = None
    if coupon["duration"] == "repeating":
        month = {"interval": "month", "interval_count": 1}
        end = boundary(account.now, month, coupon["duration_in_months"])
    body: Object = {
        "id": account.new_id("di"),
        "object": "discount",
        "checkout_session": None,
        "customer": customer,
        "customer_account": None,
        "end": end,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": None,
        "source": {"coupon": coupon["id"], "type": "coupon"},
        "start": account.now,
        "subscription": subscription,
        "subscription_item": None,
    }
    return account.create(body, "customer.discount.created")


def active(account: Account, ids: list[str]) -> list[Object]:
    """Those of the discounts that have not ended."""
    found = [account.need("discount", discount) for discount in ids]
    return [discount for discount in found if discount["end"] is None or discount["end"] > account.now]


def is_once(account: Account, discount: Object) -> bool:
    coupon = account.store.get("coupon", discount["source"]["coupon"])
    return coupon is None or coupon.get("deleted", False) or coupon["duration"] == "once"


def taken_off(account: Account, ids: list[str], lines: list[Object]) -> dict[str, list[dict[str, Any]]]:
    """Amounts by line and discount, one discount after the other; a line never goes below zero.

    An amount off is spread over the lines in proportion, the last one taking what rounding left.
    """
    off: dict[str, list[dict[str, Any]]] = {line["id"]: [] for line in lines}
    left = {line["id"]: line["amount"] for line in lines if line["discountable"] and line["amount"] > 0}
    for discount_id in ids:
        discount = account.need("discount", discount_id)
        coupon = account.store.get("coupon", discount["source"]["coupon"]) or {}
        total = sum(left.values())
        amount = min(total, coupon.get("amount_off") or 0)
        spread = 0
        for number, (line, value) in enumerate(left.items(), 1):
            if coupon.get("percent_off") is not None:
                part = whole_cents(Decimal(value) * Decimal(str(coupon["percent_off"])) / 100)
            elif number == len(left):
                part = amount - spread
            else:
                part = whole_cents(Decimal(amount) * value / total) if total else 0
            spread += part
            left[line] = value - part
            if part:
                off[line].append({"amount": part, "discount": discount_id})
    return off
