"""Requests about invoices.

Belongs here: `/v1/invoices` and `/v1/invoice_payments`. Does not belong here: what they do (`invoices.py`).
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe import catalogue, customers, invoice_items, invoices
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Flag,
    Given,
    Group,
    Integer,
    Range,
    Required,
    Text,
    TextMap,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_FIELDS = Group(
    auto_advance=Flag(),
    collection_method=Text(choices=("charge_automatically", "send_invoice")),
    days_until_due=Integer(minimum=0),
    default_payment_method=Text(),
    description=Text(1500, unset=True),
    metadata=TextMap(),
)
_PLAIN = ("auto_advance", "collection_method", "default_payment_method", "description")


@routes.post(
    "/v1/invoices",
    _FIELDS,
    currency=CURRENCY,
    customer=Required(Text()),
    pending_invoice_items_behavior=Text(choices=("exclude", "include")),
    subscription=Text(),
)
def create(account: Account, given: Given) -> Object:
    customer = customers.need(account, given["customer"])
    subscription = None
    if "subscription" in given:
        subscription = account.need("subscription", given["subscription"], "subscription")
    body = invoices.new(account, customer, "manual", subscription=subscription, auto_advance=False)
    body = account.change(body, "", **catalogue.plain_changes(body, given, *_PLAIN, "currency"))
    account.store.put(body, {"days_until_due": given.get("days_until_due", 30)})
    if given.get("pending_invoice_items_behavior") == "include":
        for item in invoice_items.pending(account, customer["id"], str(given.get("subscription"))):
            invoice_items.draw(account, item, body)
    return invoices.announce(account, invoices.recount(account, body))


def _of(account: Account, invoice: str) -> Object:
    body = account.need("invoice", invoice)
    account.live_by(body["test_clock"])
    return body


@routes.get("/v1/invoices/{invoice}")
def retrieve(account: Account, given: Given, invoice: str) -> Object:
    return account.need("invoice", invoice, deleted=True)


@routes.post("/v1/invoices/{invoice}", _FIELDS)
def update(account: Account, given: Given, invoice: str) -> Object:
    body = _of(account, invoice)
    changes = catalogue.plain_changes(body, given, *_PLAIN)
    final = {"collection_method", "description"} & set(given)
    if body["status"] != "draft" and final:
        raise invalid(
            "Finalized invoices can't be updated in this way.", sorted(final)[0], "invoice_not_editable"
        )
    body = account.change(body, **changes)
    if body["status"] == "draft" and "auto_advance" in given:
        at = account.now + account.behaviour.finalize_after_seconds if given["auto_advance"] else None
        account.schedule("finalize", invoice, at)
        body = account.change(body, "", automatically_finalizes_at=at)
    return body


@routes.delete("/v1/invoices/{invoice}")
def delete(account: Account, given: Given, invoice: str) -> Object:
    body = _of(account, invoice)
    if body["status"] != "draft" or body["parent"] is not None:
        raise invalid("You can only delete draft invoices that are for no subscription.")
    account.schedule("finalize", invoice, None)
    for item in account.store.every("invoiceitem", invoice=invoice):
        account.change(item, "", invoice=None)
    for line in account.store.every("line_item", invoice=invoice):
        account.store.remove("line_item", line["id"])
    return account.delete(body)


@routes.post("/v1/invoices/{invoice}/finalize", auto_advance=Flag())
def finalize(account: Account, given: Given, invoice: str) -> Object:
    """Finalise now; one that advances by itself is charged at once, at Stripe within about an hour."""
    body = _of(account, invoice)
    if "auto_advance" in given:
        body = account.change(body, "", auto_advance=given["auto_advance"])
    final = invoices.finalize(account, body)
    return invoices.collect(account, final) if final["auto_advance"] else final


@routes.post(
    "/v1/invoices/{invoice}/pay",
    forgive=Flag(),
    off_session=Flag(),
    paid_out_of_band=Flag(),
    payment_method=Text(),
)
def pay(account: Account, given: Given, invoice: str) -> Object:
    out_of_band = given.get("paid_out_of_band", False) or given.get("forgive", False)
    return invoices.pay(account, _of(account, invoice), given.get("payment_method"), out_of_band=out_of_band)


@routes.post("/v1/invoices/{invoice}/void")
def void(account: Account, given: Given, invoice: str) -> Object:
    return invoices.void(account, _of(account, invoice))


@routes.post("/v1/invoices/{invoice}/mark_uncollectible")
def mark_uncollectible(account: Account, given: Given, invoice: str) -> Object:
    return invoices.mark_uncollectible(account, _of(account, invoice))


@routes.post("/v1/invoices/{invoice}/send")
def send(account: Account, given: Given, invoice: str) -> Object:
    body = _of(account, invoice)
    if body["status"] == "draft":
        body = invoices.finalize(account, body)
    account.emit("invoice.sent", body)
    return body


@routes.list("/v1/invoices/{invoice}/lines")
def list_lines(account: Account, given: Given, invoice: str) -> Page:
    account.need("invoice", invoice)
    url = f"/v1/invoices/{invoice}/lines"
    return page(account, "line_item", url, given, {"invoice": invoice}, newest_first=False)


@routes.list(
    "/v1/invoices",
    collection_method=Text(),
    created=Range(),
    customer=Text(),
    status=Text(choices=("draft", "open", "paid", "uncollectible", "void")),
    subscription=Text(),
)
def list_all(account: Account, given: Given) -> Page:
    where = {name: given.get(name) for name in ("collection_method", "customer", "status", "subscription")}
    return page(account, "invoice", "/v1/invoices", given, where)


@routes.get("/v1/invoice_payments/{payment}")
def retrieve_payment(account: Account, given: Given, payment: str) -> Object:
    return account.need("invoice_payment", payment)


@routes.list(
    "/v1/invoice_payments",
    created=Range(),
    invoice=Text(),
    payment=Group(type=Required(Text(choices=("payment_intent",))), payment_intent=Text()),
    status=Text(choices=("canceled", "open", "paid")),
)
def list_payments(account: Account, given: Given) -> Page:
    where = {
        "invoice": given.get("invoice"),
        "payment": given.get("payment", {}).get("payment_intent"),
        "status": given.get("status"),
    }
    return page(account, "invoice_payment", "/v1/invoice_payments", given, where)
