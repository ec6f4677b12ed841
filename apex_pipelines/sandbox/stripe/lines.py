"""Lines of invoices.

Belongs here: making lines for items of subscriptions and for invoice items, and counting metered use again.
Does not belong here: totals and what becomes of an invoice (`invoices.py`).

The use of a trial is shown and costs nothing; Stripe documents only the latter. Use that sums up to less than
nothing counts as none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from apex_pipelines.sandbox.stripe import meters, pricing
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.pricing import Charge
from apex_pipelines.sandbox.stripe.store import Object

Period = tuple[int, int]


def _line(
    account: Account,
    invoice: Object,
    charge: Charge,
    period: Period,
    description: str,
    parent: Object,
    price: Object | None,
    **more: Any,
) -> Object:
    details = None if price is None else {"price": price["id"], "product": price["product"]}
    pricing_of = {"type": "price_details", "price_details": details} if details else {"type": "price_details"}
    return {
        "id": account.new_id("il"),
        "object": "line_item",
        "amount": charge.amount,
        "currency": invoice["currency"],
        "description": description,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": {},
        "parent": parent,
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": [],
        "pricing": {**pricing_of, "unit_amount_decimal": charge.unit_amount_decimal},
        "quantity": charge.quantity,
        "quantity_decimal": str(charge.quantity),
        "subscription": _subscription_of(parent),
        "subtotal": charge.amount,
        "taxes": [],
        **more,
    }


def _subscription_of(parent: Object) -> str | None:
    details = parent["subscription_item_details"] or parent["invoice_item_details"]
    subscription: str | None = details["subscription"]
    return subscription


def item_parent(item: Object, invoice_item: str | None = None) -> Object:
    """Where a line of a subscription's item comes from; of a proration there is an invoice item too."""
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": invoice_item,
            "proration": invoice_item is not None,
            "proration_details": {"credited_items": None},
            "subscription": item["subscription"],
            "subscription_item": item["id"],
        },
        "type": "subscription_item_details",
    }


def flat(
    account: Account, invoice: Object, item: Object, period: Period, *, trial: bool = False
) -> list[Object]:
    """Lines of a price that is paid in advance."""
    price = account.need("price", item["price"])
    name = _product_name(account, price)
    made = []
    for charge in pricing.charges(price, item["quantity"]):
        if trial:
            charge = Charge(charge.quantity, 0, "0")
        description = f"Trial period for {name}" if trial else _described(charge, name, price)
        made.append(_line(account, invoice, charge, period, description, item_parent(item), price))
    return [account.create(line, quiet=True) for line in made]


def partial(account: Account, invoice: Object, item: Object, period: Period, of_seconds: int) -> Object:
    """One line for part of a period that is paid in advance."""
    price = account.need("price", item["price"])
    name = _product_name(account, price)
    whole = sum(charge.amount for charge in pricing.charges(price, item["quantity"]))
    amount = pricing.prorated(whole, period[1] - period[0], of_seconds)
    charge = Charge(item["quantity"], amount, str(amount))
    description = f"{item['quantity']} × {name} (from {_day(period[0])} to {_day(period[1])})"
    return account.create(
        _line(account, invoice, charge, period, description, item_parent(item), price), quiet=True
    )


def metered(
    account: Account, invoice: Object, item: Object, period: Period, *, trial: bool = False
) -> list[Object]:
    """Lines of what was used in a period that ended; lines that are there already are counted again."""
    price = account.need("price", item["price"])
    name = _product_name(account, price)
    meter = account.need("billing.meter", price["recurring"]["meter"])
    since = max(period[0], account.store.hidden("subscription_item", item["id"]).get("since", 0))
    used = max(0, meters.aggregate(account, meter, invoice["customer"], since, period[1]))
    charges = [Charge(used, 0, "0")] if trial else pricing.charges(price, used)
    before = [
        line
        for line in account.store.every("line_item", invoice=invoice["id"])
        if (line["parent"]["subscription_item_details"] or {}).get("subscription_item") == item["id"]
    ]
    made = []
    for number, charge in enumerate(charges):
        description = _described(charge, name, price)
        line = _line(account, invoice, charge, period, description, item_parent(item), price)
        if number < len(before):
            line["id"] = before[number]["id"]
        account.store.put(line)
        made.append(line)
    for line in before[len(charges) :]:
        account.store.remove("line_item", line["id"])
    return made


def from_invoice_item(account: Account, invoice: Object, item: Object) -> Object:
    """The line of an invoice item."""
    details = account.store.hidden("invoiceitem", item["id"])
    price_id = details.get("price")
    parent: Object
    if item["proration"]:
        subscription_item = account.need("subscription_item", details["subscription_item"], deleted=True)
        subscription = item["parent"]["subscription_details"]["subscription"]
        parent = item_parent({**subscription_item, "subscription": subscription}, item["id"])
    else:
        linked = (item["parent"] or {}).get("subscription_details") or {}
        parent = {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": linked.get("subscription"),
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        }
    charge = Charge(item["quantity"], item["amount"], item["pricing"]["unit_amount_decimal"])
    line = _line(
        account,
        invoice,
        charge,
        (item["period"]["start"], item["period"]["end"]),
        item["description"],
        parent,
        None if price_id is None else account.need("price", price_id),
        discountable=item["discountable"],
        metadata=item["metadata"],
    )
    return account.create(line, quiet=True)


def _product_name(account: Account, price: Object) -> str:
    product = account.need("product", price["product"], deleted=True)
    return str(product.get("name", product["id"]))


def _described(charge: Charge, name: str, price: Object) -> str:
    interval = price["recurring"]["interval"]
    tier = "" if charge.tier is None else f" (Tier {charge.tier})"
    return f"{charge.quantity} × {name}{tier} (at {charge.unit_amount_decimal} cents / {interval})"


def _day(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%d %b %Y}"
