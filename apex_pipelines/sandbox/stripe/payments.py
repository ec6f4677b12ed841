"""Money that moves: payment intents, charges, refunds.

Belongs here: `/v1/payment_intents`, `/v1/charges`, `/v1/refunds`, and charging a stored card. Does not belong
here: what an invoice does when its payment fails.
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe import customers, disputes
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.catalogue import plain_changes
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import Given, Integer, Range, Text, TextMap, merged_metadata
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_MESSAGES = {
    "expired_card": "Your card has expired.",
    "insufficient_funds": "Your card has insufficient funds.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
}
_OWN_CODES = {"expired_card", "processing_error"}


def new_intent(account: Account, customer: str, amount: int, currency: str, description: str) -> Object:
    """A payment that waits for a card."""
    intent_id = account.new_id("pi")
    body: Object = {
        "id": intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{intent_id}_secret_{account.new_id('s')[2:]}",
        "confirmation_method": "automatic",
        "created": account.now,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "description": description,
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": {},
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": "off_session",
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
    }
    return account.create(body)


def confirm(account: Account, intent: Object, method: Object) -> tuple[Object, Refusal | None]:
    """Charge a card for an intent; returns the intent and, when the card is declined, the refusal."""
    behaviour = account.store.hidden("payment_method", method["id"])
    decline = behaviour.get("decline_code")
    charge = _charge(account, intent, method, decline)
    if decline is None:
        account.emit("charge.succeeded", charge)
        paid = account.change(
            intent,
            "payment_intent.succeeded",
            amount_received=intent["amount"],
            last_payment_error=None,
            latest_charge=charge["id"],
            payment_method=method["id"],
            status="succeeded",
        )
        if behaviour.get("disputed"):
            disputes.open_dispute(account, charge, "fraudulent")
        return paid, None
    account.emit("charge.failed", charge)
    refusal = _declined(decline, charge["id"])
    error = {**refusal.body["error"], "payment_method": method}
    failed = account.change(
        intent,
        "payment_intent.payment_failed",
        last_payment_error=error,
        latest_charge=charge["id"],
        payment_method=None,
        status="requires_payment_method",
    )
    return failed, refusal


def _declined(decline: str, charge: str) -> Refusal:
    code = decline if decline in _OWN_CODES else "card_declined"
    return Refusal(
        402,
        "card_error",
        _MESSAGES.get(decline, "Your card was declined."),
        code=code,
        decline_code=decline,
        charge=charge,
        changes_kept=True,
    )


def _charge(account: Account, intent: Object, method: Object, decline: str | None) -> Object:
    paid = decline is None
    shown = ("brand", "checks", "country", "exp_month", "exp_year", "fingerprint", "funding", "last4")
    body: Object = {
        "id": account.new_id("ch"),
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": None,
        "captured": paid,
        "created": account.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None if paid else ("card_declined" if decline not in _OWN_CODES else decline),
        "failure_message": None if paid else _MESSAGES.get(str(decline), "Your card was declined."),
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "on_behalf_of": None,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network" if paid else "declined_by_network",
            "reason": decline,
            "seller_message": "Payment complete." if paid else "The bank declined the payment.",
            "type": "authorized" if paid else "issuer_declined",
        },
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": {
            "card": {
                **{name: method["card"][name] for name in shown},
                "installments": None,
                "mandate": None,
                "network": method["card"]["brand"],
                "three_d_secure": None,
                "wallet": None,
            },
            "type": "card",
        },
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded" if paid else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }
    return account.create(body, quiet=True)


# Payment intents and charges.


@routes.get("/v1/payment_intents/{intent}")
def retrieve_intent(account: Account, given: Given, intent: str) -> Object:
    return account.need("payment_intent", intent)


@routes.list("/v1/payment_intents", created=Range(), customer=Text())
def list_intents(account: Account, given: Given) -> Page:
    where = {"customer": given.get("customer")}
    return page(account, "payment_intent", "/v1/payment_intents", given, where)


@routes.get("/v1/charges/{charge}")
def retrieve_charge(account: Account, given: Given, charge: str) -> Object:
    return account.need("charge", charge)


@routes.post("/v1/charges/{charge}", description=Text(unset=True), metadata=TextMap())
def update_charge(account: Account, given: Given, charge: str) -> Object:
    body = account.need("charge", charge)
    return account.change(body, **plain_changes(body, given, "description"))


@routes.list("/v1/charges", created=Range(), customer=Text(), payment_intent=Text())
def list_charges(account: Account, given: Given) -> Page:
    where = {"customer": given.get("customer"), "payment_intent": given.get("payment_intent")}
    return page(account, "charge", "/v1/charges", given, where)


# Refunds.


@routes.post(
    "/v1/refunds",
    amount=Integer(minimum=1),
    charge=Text(),
    metadata=TextMap(),
    payment_intent=Text(),
    reason=Text(choices=("duplicate", "fraudulent", "requested_by_customer")),
)
def create_refund(account: Account, given: Given) -> Object:
    charge = _refundable(account, given)
    customers.need(account, charge["customer"])
    left = charge["amount_captured"] - charge["amount_refunded"]
    amount = given.get("amount", left)
    if left == 0:
        raise invalid(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if amount > left:
        raise invalid(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", "amount"
        )
    body: Object = {
        "id": account.new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charge["id"],
        "created": account.now,
        "currency": charge["currency"],
        "customer": charge["customer"],
        "customer_account": None,
        "destination_details": {"card": {"type": "refund"}, "type": "card"},
        "metadata": merged_metadata({}, given),
        "payment_intent": charge["payment_intent"],
        "payment_method": charge["payment_method"],
        "reason": given.get("reason"),
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }
    account.create(body)
    refunded = charge["amount_refunded"] + amount
    account.change(
        charge,
        "charge.refunded",
        amount_refunded=refunded,
        refunded=refunded == charge["amount_captured"],
    )
    return body


def _refundable(account: Account, given: Given) -> Object:
    if "charge" in given:
        charge = account.need("charge", given["charge"], "charge")
    elif "payment_intent" in given:
        intent = account.need("payment_intent", given["payment_intent"], "payment_intent")
        charge = account.need("charge", str(intent["latest_charge"]), "payment_intent")
    else:
        raise invalid("One of the following params should be provided: payment_intent or charge.")
    if not charge["captured"]:
        raise invalid("This charge was not captured, so there is nothing to refund.", "charge")
    return charge


@routes.get("/v1/refunds/{refund}")
def retrieve_refund(account: Account, given: Given, refund: str) -> Object:
    return account.need("refund", refund)


@routes.post("/v1/refunds/{refund}", metadata=TextMap())
def update_refund(account: Account, given: Given, refund: str) -> Object:
    body = account.need("refund", refund)
    return account.change(body, metadata=merged_metadata(body["metadata"], given))


@routes.list("/v1/refunds", charge=Text(), created=Range(), payment_intent=Text())
def list_refunds(account: Account, given: Given) -> Page:
    where: dict[str, Any] = {name: given.get(name) for name in ("charge", "payment_intent")}
    return page(account, "refund", "/v1/refunds", given, where)
