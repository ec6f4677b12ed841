"""Amounts that go onto a draft, or wait for the next invoice.

Belongs here: `/v1/invoiceitems`. Does not belong here: lines that come from a subscription's prices.
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe import catalogue, customers, invoices, lines
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Flag,
    Given,
    Group,
    Integer,
    Number,
    Range,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.pricing import charges
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_PERIOD = Group(start=Required(Integer()), end=Required(Integer()))
_FIELDS = Group(
    amount=Integer(),
    description=Text(unset=True),
    discountable=Flag(),
    metadata=TextMap(),
    period=_PERIOD,
    quantity=Integer(minimum=0),
    unit_amount_decimal=Number(),
)


@routes.post(
    "/v1/invoiceitems",
    _FIELDS,
    currency=CURRENCY,
    customer=Required(Text()),
    invoice=Text(),
    pricing=Group(price=Required(Text())),
    subscription=Text(),
)
def create(account: Account, given: Given) -> Object:
    customer = customers.need(account, given["customer"])
    body = new(account, customer, given)
    if "invoice" in given:
        invoice = _draft(account, given["invoice"], customer["id"])
        draw(account, body, invoice)
        invoices.recount(account, invoice, "invoice.updated")
        return account.need("invoiceitem", body["id"])
    return body


def _draft(account: Account, invoice_id: str, customer: str) -> Object:
    invoice = account.need("invoice", invoice_id, "invoice")
    if invoice["customer"] != customer:
        raise invalid(f"The invoice {invoice_id} belongs to another customer.", "invoice")
    if invoice["status"] != "draft":
        raise invalid(
            "This invoice is no longer editable; invoice items can be added to drafts only.",
            "invoice",
            "invoice_not_editable",
        )
    return invoice


def new(account: Account, customer: Object, given: Given, *, proration_of: Object | None = None) -> Object:
    """A pending item; of a proration `proration_of` is the subscription's item."""
    price = None
    quantity = given.get("quantity", 1)
    if "pricing" in given:
        price = account.need("price", given["pricing"]["price"], "pricing[price]")
        charge = charges(price, quantity)[0]
        amount, unit = charge.amount, charge.unit_amount_decimal
    elif "unit_amount_decimal" in given:
        charge = charges({"billing_scheme": "per_unit", **given}, quantity)[0]
        amount, unit = charge.amount, charge.unit_amount_decimal
    elif "amount" in given:
        amount, unit = given["amount"], str(given["amount"])
    else:
        raise invalid("You must specify `amount` or `pricing`.", "amount", "parameter_missing")
    subscription = given.get("subscription")
    if subscription is not None:
        account.need("subscription", subscription, "subscription")
    parent = None
    if subscription is not None:
        link: Object = {"subscription": subscription}
        if proration_of is not None:
            link["subscription_item"] = proration_of["id"]
        parent = {"subscription_details": link, "type": "subscription_details"}
    details = None if price is None else {"price": price["id"], "product": price["product"]}
    body: Object = {
        "id": account.new_id("ii"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": given.get("currency", customer["currency"] or "usd"),
        "customer": customer["id"],
        "customer_account": None,
        "date": account.now,
        "description": given.get("description"),
        "discountable": given.get("discountable", proration_of is None and amount > 0),
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": merged_metadata({}, given),
        "net_amount": amount,
        "parent": parent,
        "period": given.get("period", {"start": account.now, "end": account.now}),
        "pricing": {
            "type": "price_details",
            **({"price_details": details} if details else {}),
            "unit_amount_decimal": unit,
        },
        "proration": proration_of is not None,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "tax_rates": [],
        "test_clock": customer["test_clock"],
    }
    hidden: dict[str, Any] = {"price": None if price is None else price["id"]}
    if proration_of is not None:
        hidden = {"price": proration_of["price"], "subscription_item": proration_of["id"]}
    return account.create(body, hidden=hidden)


def pending(account: Account, customer: str, subscription: str) -> list[Object]:
    """What waits for the next invoice of that subscription: its own, and what names no subscription."""
    found = account.store.every("invoiceitem", customer=customer, invoice=None)
    linked = [
        ((item["parent"] or {}).get("subscription_details") or {}).get("subscription") for item in found
    ]
    return [item for item, link in zip(found, linked, strict=True) if link in (None, subscription)]


def draw(account: Account, item: Object, invoice: Object) -> None:
    """Put a pending item onto a draft."""
    lines.from_invoice_item(account, invoice, item)
    account.change(item, "", invoice=invoice["id"])


@routes.get("/v1/invoiceitems/{item}")
def retrieve(account: Account, given: Given, item: str) -> Object:
    return account.need("invoiceitem", item, deleted=True)


@routes.post("/v1/invoiceitems/{item}", _FIELDS)
def update(account: Account, given: Given, item: str) -> Object:
    body = account.need("invoiceitem", item)
    account.live_by(body["test_clock"])
    changes = catalogue.plain_changes(body, given, "description", "discountable", "period")
    if "amount" in given:
        unit = {**body["pricing"], "unit_amount_decimal": str(given["amount"])}
        changes |= {"amount": given["amount"], "net_amount": given["amount"], "pricing": unit}
    if body["invoice"] is None:
        return account.change(body, "", **changes)
    invoice = _draft(account, body["invoice"], body["customer"])
    _take_off(account, body)
    body = account.change(body, "", **changes)
    lines.from_invoice_item(account, invoice, body)
    invoices.recount(account, invoice, "invoice.updated")
    return body


@routes.delete("/v1/invoiceitems/{item}")
def delete(account: Account, given: Given, item: str) -> Object:
    body = account.need("invoiceitem", item)
    account.live_by(body["test_clock"])
    if body["invoice"] is not None:
        invoice = _draft(account, body["invoice"], body["customer"])
        _take_off(account, body)
        invoices.recount(account, invoice, "invoice.updated")
    return account.delete(body)


def _take_off(account: Account, item: Object) -> None:
    for line in account.store.every("line_item", invoice=item["invoice"]):
        details = line["parent"]["invoice_item_details"] or line["parent"]["subscription_item_details"]
        if details["invoice_item"] == item["id"]:
            account.store.remove("line_item", line["id"])


@routes.list("/v1/invoiceitems", created=Range(), customer=Text(), invoice=Text(), pending=Flag())
def list_all(account: Account, given: Given) -> Page:
    where = {"customer": given.get("customer"), "invoice": given.get("invoice")}
    conditions: list[tuple[str, Any]] = []
    if "pending" in given:
        comparison = "is" if given["pending"] else "is not"
        conditions = [(f"json_extract(body, '$.invoice') {comparison}", None)]
    return page(account, "invoiceitem", "/v1/invoiceitems", given, where, conditions=conditions)
