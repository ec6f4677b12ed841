"""Cards that succeed and cards that don't.

Belongs here: `/v1/payment_methods`, and how each test card behaves. Does not belong here: charging them.

Whether Stripe lets a card that will be declined be attached is documented only for
`pm_card_chargeCustomerFail` (it does); here all of them can be. What a stored card does is not shown in it,
as with a real one, and `/_sandbox/payment_methods` changes it: cards go bad later.
"""

from __future__ import annotations

from dataclasses import dataclass

from apex_pipelines.sandbox.stripe import customers
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid, missing
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    Given,
    Group,
    Integer,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

# After these Stripe tries again only with another card.
HARD_DECLINES = frozenset(
    {
        "incorrect_number", "lost_card", "pickup_card", "stolen_card", "revocation_of_authorization",
        "revocation_of_all_authorizations", "authentication_required", "highest_risk_level",
        "transaction_not_allowed",
    }
)  # fmt: skip


@dataclass(frozen=True)
class TestCard:
    """A card by its brand and last digits, and by why it is declined, or disputed after it was charged."""

    brand: str
    last4: str
    decline_code: str | None = None
    disputed: bool = False


TEST_CARDS = {
    "pm_card_visa": TestCard("visa", "4242"),
    "pm_card_mastercard": TestCard("mastercard", "4444"),
    "pm_card_amex": TestCard("amex", "8431"),
    "pm_card_chargeCustomerFail": TestCard("visa", "0341", "generic_decline"),
    "pm_card_chargeDeclined": TestCard("visa", "0002", "generic_decline"),
    "pm_card_chargeDeclinedExpiredCard": TestCard("visa", "0069", "expired_card"),
    "pm_card_chargeDeclinedInsufficientFunds": TestCard("visa", "9995", "insufficient_funds"),
    "pm_card_chargeDeclinedProcessingError": TestCard("visa", "0119", "processing_error"),
    "pm_card_visa_chargeDeclined": TestCard("visa", "0002", "generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": TestCard("visa", "9995", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": TestCard("visa", "9987", "lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": TestCard("visa", "9979", "stolen_card"),
    "pm_card_createDispute": TestCard("visa", "0259", disputed=True),
}


@routes.post(
    "/v1/payment_methods",
    card=Required(Group(token=Required(Text()))),
    metadata=TextMap(),
    type=Required(Text(choices=("card",))),
)
def create(account: Account, given: Given) -> Object:
    """A card of a test token, such as `tok_visa`; numbers of cards are not taken."""
    token = given["card"]["token"]
    name = f"pm_card_{token.removeprefix('tok_')}"
    if not token.startswith("tok_") or name not in TEST_CARDS:
        raise missing("token", token, "card[token]")
    return _new_card(account, name, None, merged_metadata({}, given))


def _new_card(account: Account, name: str, customer: str | None, metadata: dict[str, str]) -> Object:
    card = TEST_CARDS[name]
    body: Object = {
        "id": account.new_id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {
            "address": dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")),
            "email": None,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "card": {
            "brand": card.brand,
            "checks": {
                "address_line1_check": None,
                "address_postal_code_check": None,
                "cvc_check": "pass",
            },
            "country": "US",
            "display_brand": card.brand,
            "exp_month": 12,
            "exp_year": 2040,
            "fingerprint": f"test{card.last4}",
            "funding": "credit",
            "generated_from": None,
            "last4": card.last4,
            "networks": {"available": [card.brand], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        },
        "created": account.now,
        "customer": customer,
        "customer_account": None,
        "livemode": False,
        "metadata": metadata,
        "type": "card",
    }
    hidden = {"decline_code": card.decline_code, "disputed": card.disputed}
    return account.create(body, hidden=hidden, quiet=True)


def stored(account: Account, method: str, customer: str) -> Object:
    """A payment method of a customer; one of Stripe's test names becomes one.

    Raises
    ------
    Refusal
        If there is none, or it is another customer's.
    """
    if method in TEST_CARDS:
        body = _new_card(account, method, customer, {})
        account.emit("payment_method.attached", body)
        return body
    body = account.need("payment_method", method, "payment_method")
    if body["customer"] != customer:
        raise invalid(f"The payment method {method} does not belong to the customer.", "payment_method")
    return body


@routes.post("/v1/payment_methods/{payment_method}/attach", customer=Required(Text()))
def attach(account: Account, given: Given, payment_method: str) -> Object:
    customer = customers.need(account, given["customer"])["id"]
    if payment_method in TEST_CARDS:
        return stored(account, payment_method, customer)
    body = account.need("payment_method", payment_method)
    if body["customer"] not in (None, customer):
        raise invalid("The payment method you provided has already been attached to a customer.")
    return account.change(body, "payment_method.attached", customer=customer)


@routes.post("/v1/payment_methods/{payment_method}/detach")
def detach(account: Account, given: Given, payment_method: str) -> Object:
    body = account.need("payment_method", payment_method)
    owner = body["customer"]
    if owner is None:
        raise invalid(
            "The payment method you provided is not attached to a customer so detachment is impossible."
        )
    customer = customers.need(account, owner)
    if customer["invoice_settings"]["default_payment_method"] == payment_method:
        settings = {**customer["invoice_settings"], "default_payment_method": None}
        account.change(customer, invoice_settings=settings)
    for subscription in account.store.every("subscription", customer=owner):
        if subscription["default_payment_method"] == payment_method:
            account.change(subscription, "customer.subscription.updated", default_payment_method=None)
    return account.change(body, "payment_method.detached", customer=None)


@routes.get("/v1/payment_methods/{payment_method}")
def retrieve(account: Account, given: Given, payment_method: str) -> Object:
    return account.need("payment_method", payment_method)


_CHANGES = Group(card=Group(exp_month=Integer(), exp_year=Integer()), metadata=TextMap())


@routes.post("/v1/payment_methods/{payment_method}", _CHANGES)
def update(account: Account, given: Given, payment_method: str) -> Object:
    body = account.need("payment_method", payment_method)
    card = {**body["card"], **given.get("card", {})}
    return account.change(body, card=card, metadata=merged_metadata(body["metadata"], given))


@routes.list("/v1/payment_methods", customer=Text(), type=Text())
def list_all(account: Account, given: Given) -> Page:
    return page(account, "payment_method", "/v1/payment_methods", given, {"customer": given.get("customer")})


@routes.list("/v1/customers/{customer}/payment_methods", type=Text())
def list_of_customer(account: Account, given: Given, customer: str) -> Page:
    url = f"/v1/customers/{customer}/payment_methods"
    return page(account, "payment_method", url, given, {"customer": customer})
