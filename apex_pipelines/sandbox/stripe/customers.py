"""Customers and their balance.

Belongs here: what `/v1/customers` does, except payment methods. Does not belong here: subscriptions.
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Given,
    Group,
    Integer,
    Range,
    Required,
    Text,
    TextMap,
    Unset,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

ADDRESS = Unset(
    Group(
        city=Text(unset=True), country=Text(unset=True), line1=Text(unset=True), line2=Text(unset=True),
        postal_code=Text(unset=True), state=Text(unset=True),
    )
)  # fmt: skip
_FIELDS = Group(
    address=ADDRESS,
    balance=Integer(),
    description=Text(unset=True),
    email=Text(512, unset=True),
    invoice_settings=Group(default_payment_method=Text(unset=True), footer=Text(unset=True)),
    metadata=TextMap(),
    name=Text(256, unset=True),
    phone=Text(20, unset=True),
)


def need(account: Account, customer_id: str, param: str = "customer") -> Object:
    """A customer that a request names; the request then happens at its time.

    Raises
    ------
    Refusal
        If there is none.
    """
    found = account.need("customer", customer_id, param)
    account.live_by(found["test_clock"])
    return found


@routes.post("/v1/customers", _FIELDS, payment_method=Text(), test_clock=Text())
def create(account: Account, given: Given) -> Object:
    account.live_by(given.get("test_clock"))
    customer_id = account.new_id("cus")
    blank: Object = {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": account.now,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": customer_id[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": given.get("test_clock"),
    }
    card = given.pop("payment_method", None)
    body = account.create({**blank, **_changes(account, blank, given)})
    if card is not None:
        # Imported here: attaching asks for the customer.
        from apex_pipelines.sandbox.stripe import payment_methods

        payment_methods.attach(account, {"customer": customer_id}, payment_method=card)
    return body


@routes.get("/v1/customers/{customer}")
def retrieve(account: Account, given: Given, customer: str) -> Object:
    return account.need("customer", customer, deleted=True)


@routes.post("/v1/customers/{customer}", _FIELDS)
def update(account: Account, given: Given, customer: str) -> Object:
    body = need(account, customer, "id")
    return account.change(body, **_changes(account, body, given))


@routes.delete("/v1/customers/{customer}")
def delete(account: Account, given: Given, customer: str) -> Object:
    body = need(account, customer, "id")
    # Imported here: subscriptions know customers, and only this of customers knows them.
    from apex_pipelines.sandbox.stripe import subscriptions

    subscriptions.cancel_all(account, customer)
    return account.delete(body)


@routes.list("/v1/customers", created=Range(), email=Text(), test_clock=Text())
def list_all(account: Account, given: Given) -> Page:
    where = {"email": given.get("email"), "test_clock": given.get("test_clock")}
    return page(account, "customer", "/v1/customers", given, where)


def _changes(account: Account, before: Object, given: Given) -> Object:
    changes: dict[str, Any] = {
        key: value for key, value in given.items() if key in _FIELDS.fields and key != "metadata"
    }
    changes["metadata"] = merged_metadata(before["metadata"], given)
    if "invoice_settings" in given:
        settings = given["invoice_settings"]
        method = settings.get("default_payment_method")
        if method is not None:
            found = account.need("payment_method", method, "invoice_settings[default_payment_method]")
            if found["customer"] != before["id"]:
                raise invalid(
                    "The customer does not have a payment method with the ID "
                    f"{method}. The payment method must be attached to the customer.",
                    "invoice_settings[default_payment_method]",
                    "resource_missing",
                )
        changes["invoice_settings"] = {**before["invoice_settings"], **settings}
    return changes


@routes.post(
    "/v1/customers/{customer}/balance_transactions",
    Group(
        amount=Required(Integer()),
        currency=Required(CURRENCY),
        description=Text(unset=True),
        metadata=TextMap(),
    ),
)
def create_balance_transaction(account: Account, given: Given, customer: str) -> Object:
    return move_balance(account, need(account, customer, "id"), given["amount"], given, "adjustment")


def move_balance(
    account: Account, customer: Object, amount: int, given: Given, kind: str, invoice: str | None = None
) -> Object:
    """Change what a customer owes (positive) or has to its credit (negative), in cents."""
    body: Object = {
        "id": account.new_id("cbtxn"),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": account.now,
        "credit_note": None,
        "currency": given["currency"],
        "customer": customer["id"],
        "customer_account": None,
        "description": given.get("description"),
        "ending_balance": customer["balance"] + amount,
        "invoice": invoice,
        "livemode": False,
        "metadata": merged_metadata({}, given),
        "type": kind,
    }
    account.change(customer, balance=body["ending_balance"], currency=given["currency"])
    return account.create(body, quiet=True)


@routes.list("/v1/customers/{customer}/balance_transactions", created=Range(), invoice=Text())
def list_balance_transactions(account: Account, given: Given, customer: str) -> Page:
    url = f"/v1/customers/{customer}/balance_transactions"
    return page(account, "customer_balance_transaction", url, given, {"customer": customer})


@routes.get("/v1/customers/{customer}/balance_transactions/{transaction}")
def retrieve_balance_transaction(account: Account, given: Given, customer: str, transaction: str) -> Object:
    return account.need("customer_balance_transaction", transaction)
