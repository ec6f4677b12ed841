"""Invoices from draft to paid.

Belongs here: making, finalising, paying and closing them, and trying again. Does not belong here: when a
subscription is billed (`renewals.py`), and requests (`invoice_requests.py`).

Stripe finalises a renewal's draft about an hour after it was made, counts metered use until then, and charges
it at once. A failed payment is tried again on a fixed schedule (`Behaviour.retry_days`).
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe import customers, discounts, lines, payment_methods, payments, standing
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid
from apex_pipelines.sandbox.stripe.store import Object

_DAY = 86_400
NO_CARD = (
    "This customer has no attached payment source or default payment method. "
    "Please consider adding a default payment method."
)


def new(
    account: Account,
    customer: Object,
    reason: str,
    *,
    subscription: Object | None = None,
    period: lines.Period | None = None,
    **fields: Any,
) -> Object:
    """An empty draft; `period` is the one that ended."""
    start, end = period or (account.now, account.now)
    invoice_id = account.new_id("in")
    parent = None
    if subscription is not None:
        parent = {
            "quote_details": None,
            "subscription_details": {
                "metadata": subscription["metadata"],
                "subscription": subscription["id"],
            },
            "type": "subscription_details",
        }
    body: Object = {
        "id": invoice_id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Sandbox",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "created": account.now,
        "currency": customer["currency"] or "usd",
        "custom_fields": None,
        "customer": customer["id"],
        "customer_account": None,
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": parent,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": end,
        "period_start": start,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": customer["test_clock"],
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None,
        **fields,
    }
    return account.create(body, quiet=True)


def recount(account: Account, invoice: Object, event: str = "") -> Object:
    """Totals of a draft from its lines, discounts and the customer's balance."""
    found = account.store.every("line_item", invoice=invoice["id"])
    off = discounts.taken_off(account, invoice["discounts"], found)
    for line in found:
        account.change(line, "", discount_amounts=off[line["id"]])
    subtotal = sum(line["amount"] for line in found)
    per_discount = dict.fromkeys(invoice["discounts"], 0)
    for part in (part for parts in off.values() for part in parts):
        per_discount[part["discount"]] += part["amount"]
    total = subtotal - sum(per_discount.values())
    balance = account.need("customer", invoice["customer"], deleted=True).get("balance", 0)
    due = max(0, total + balance)
    return account.change(
        invoice,
        event,
        amount_due=due,
        amount_remaining=due,
        starting_balance=balance,
        subtotal=subtotal,
        subtotal_excluding_tax=subtotal,
        total=total,
        total_excluding_tax=total,
        total_discount_amounts=[
            {"amount": amount, "discount": discount} for discount, amount in per_discount.items()
        ],
    )


def announce(account: Account, invoice: Object) -> Object:
    """Tell of a new draft, and have it finalised when it advances by itself."""
    if invoice["auto_advance"]:
        at = account.now + account.behaviour.finalize_after_seconds
        account.schedule("finalize", invoice["id"], at)
        invoice = account.change(invoice, "", automatically_finalizes_at=at)
    account.emit("invoice.created", invoice)
    return invoice


# Finalising.


def finalize_due(account: Account, invoice_id: str) -> None:
    """Finalise a draft whose hour is over, and charge it."""
    invoice = account.store.get("invoice", invoice_id)
    if invoice is not None and invoice.get("status") == "draft" and invoice["auto_advance"]:
        collect(account, finalize(account, invoice))


def finalize(account: Account, invoice: Object) -> Object:
    """Fix an invoice's lines and totals, and give it its number; one of nothing is paid at once."""
    if invoice["status"] != "draft":
        raise invalid(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            code="invoice_not_editable",
        )
    account.schedule("finalize", invoice["id"], None)
    _count_use_again(account, invoice)
    invoice = recount(account, invoice)
    customer = account.need("customer", invoice["customer"])
    number = customer["next_invoice_sequence"]
    # A credit that is larger than the invoice, or an invoice of less than nothing, stays in the balance.
    applied = invoice["total"] - invoice["amount_due"]
    customer = account.change(customer, "", next_invoice_sequence=number + 1, currency=invoice["currency"])
    ending = customer["balance"]
    if applied:
        given = {"currency": invoice["currency"]}
        moved = customers.move_balance(account, customer, applied, given, "applied_to_invoice", invoice["id"])
        ending = moved["ending_balance"]
    due_date = None
    if invoice["collection_method"] == "send_invoice":
        days = account.store.hidden("invoice", invoice["id"]).get("days_until_due", 30)
        due_date = account.now + days * _DAY
    invoice = account.change(
        invoice,
        "invoice.finalized",
        automatically_finalizes_at=None,
        due_date=due_date,
        effective_at=account.now,
        ending_balance=ending,
        hosted_invoice_url=f"https://invoice.stripe.com/i/{invoice['id']}",
        invoice_pdf=f"https://pay.stripe.com/invoice/{invoice['id']}/pdf",
        number=f"{customer['invoice_prefix']}-{number:04d}",
        status="open",
        status_transitions={**invoice["status_transitions"], "finalized_at": account.now},
    )
    if invoice["amount_due"] == 0:
        return _paid(account, invoice, 0, 0)
    _expect_payment(account, invoice)
    return invoice


def _count_use_again(account: Account, invoice: Object) -> None:
    for line in account.store.every("line_item", invoice=invoice["id"]):
        details = line["parent"]["subscription_item_details"]
        if details is None or details["proration"]:
            continue
        item = account.store.get("subscription_item", details["subscription_item"])
        if item is None or item.get("deleted"):
            continue
        price = account.need("price", line["pricing"]["price_details"]["price"])
        if price["recurring"]["usage_type"] == "metered" and price["id"] == item["price"]:
            hidden = account.store.hidden("invoice", invoice["id"])
            period = (line["period"]["start"], line["period"]["end"])
            lines.metered(account, invoice, item, period, trial=hidden.get("trial", False))


def _expect_payment(account: Account, invoice: Object) -> None:
    description = "Subscription update" if invoice["parent"] else f"Payment for invoice {invoice['number']}"
    intent = payments.new_intent(
        account, invoice["customer"], invoice["amount_due"], invoice["currency"], description
    )
    account.create(
        {
            "id": account.new_id("inpay"),
            "object": "invoice_payment",
            "amount_paid": None,
            "amount_requested": invoice["amount_due"],
            "created": account.now,
            "currency": invoice["currency"],
            "invoice": invoice["id"],
            "is_default": True,
            "livemode": False,
            "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
            "status": "open",
            "status_transitions": {"canceled_at": None, "paid_at": None},
        },
        quiet=True,
    )


# Paying.


def card_for(account: Account, invoice: Object) -> str | None:
    """The card that an invoice is charged to: its own, its subscription's, its customer's."""
    subscription = standing.of_invoice(account, invoice)
    customer = account.need("customer", invoice["customer"])
    found: str | None = (
        invoice["default_payment_method"]
        or (subscription or {}).get("default_payment_method")
        or customer["invoice_settings"]["default_payment_method"]
    )
    return found


def collect(account: Account, invoice: Object) -> Object:
    """Charge an open invoice by the schedule; what fails is tried again."""
    if invoice["status"] != "open" or invoice["collection_method"] != "charge_automatically":
        return invoice
    card = card_for(account, invoice)
    failed = account.store.hidden("invoice", invoice["id"])
    if card is not None and not (failed.get("hard") and failed.get("card") == card):
        invoice, refusal = _charge(account, invoice, card, attempt=invoice["attempt_count"] + 1)
        return invoice if refusal is None else _missed(account, invoice, tell=True)
    # Without a card, or with one that will never work, a try is only counted; the first one is told of.
    return _missed(account, invoice, tell=invoice["attempt_count"] == 0)


def retry(account: Account, invoice_id: str) -> None:
    """Try an invoice again whose time has come."""
    invoice = account.store.get("invoice", invoice_id)
    if invoice is not None and invoice.get("status") == "open":
        collect(account, invoice)


def pay(account: Account, invoice: Object, method: str | None, *, out_of_band: bool = False) -> Object:
    """Pay an invoice because somebody asks.

    Raises
    ------
    Refusal
        If it can't be paid, or the card is declined; the failed attempt stays on record.
    """
    if invoice["status"] == "draft":
        invoice = finalize(account, invoice)
    if invoice["status"] == "paid":
        raise invalid("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] not in ("open", "uncollectible"):
        raise invalid(f"Invoice is {invoice['status']} and can't be paid.")
    if out_of_band:
        return _paid(account, invoice, invoice["amount_due"], invoice["attempt_count"])
    card = method or card_for(account, invoice)
    if card is None:
        raise Refusal(400, "invalid_request_error", NO_CARD, code="resource_missing", changes_kept=True)
    invoice, refusal = _charge(account, invoice, card, attempt=max(1, invoice["attempt_count"]))
    if refusal is not None:
        if invoice["attempt_count"] == 0:
            _missed(account, invoice, tell=True)
        else:  # tries by hand leave the schedule as it is
            account.emit("invoice.payment_failed", invoice)
        raise refusal
    return invoice


def _charge(account: Account, invoice: Object, card: str, *, attempt: int) -> tuple[Object, Refusal | None]:
    """Charge a card; `attempt` is the try's number by the schedule when it succeeds."""
    method = payment_methods.stored(account, card, invoice["customer"])
    payment = account.store.every("invoice_payment", invoice=invoice["id"], status="open")[0]
    intent = account.need("payment_intent", payment["payment"]["payment_intent"])
    _, refusal = payments.confirm(account, intent, method)
    if refusal is None:
        paid_at = {**payment["status_transitions"], "paid_at": account.now}
        account.change(
            payment,
            "invoice_payment.paid",
            amount_paid=invoice["amount_due"],
            status="paid",
            status_transitions=paid_at,
        )
        return _paid(account, invoice, invoice["amount_due"], attempt), None
    hard = refusal.body["error"]["decline_code"] in payment_methods.HARD_DECLINES
    invoice = account.change(invoice, "", hidden={"card": method["id"], "hard": hard}, attempted=True)
    return invoice, refusal


def _paid(account: Account, invoice: Object, amount: int, attempts: int) -> Object:
    account.schedule("retry", invoice["id"], None)
    invoice = account.change(
        invoice,
        "",
        amount_paid=amount,
        amount_remaining=0,
        attempt_count=attempts,
        attempted=True,
        auto_advance=False,
        next_payment_attempt=None,
        status="paid",
        status_transitions={**invoice["status_transitions"], "paid_at": account.now},
    )
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
    customer = account.need("customer", invoice["customer"], deleted=True)
    if customer.get("delinquent"):
        account.change(customer, delinquent=False)
    standing.after_payment(account, invoice)
    return invoice


def _missed(account: Account, invoice: Object, *, tell: bool) -> Object:
    """Count a try that failed, and plan the next one or give up."""
    count = invoice["attempt_count"] + 1
    days = account.behaviour.retry_days
    retries = (
        invoice["auto_advance"] and invoice["billing_reason"] != "subscription_create" and count <= len(days)
    )
    following = account.now + days[count - 1] * _DAY if retries else None
    invoice = account.change(invoice, "", attempt_count=count, attempted=True, next_payment_attempt=following)
    account.schedule("retry", invoice["id"], following)
    if tell:
        account.emit("invoice.payment_failed", invoice)
    account.emit("invoice.updated", invoice)
    customer = account.need("customer", invoice["customer"], deleted=True)
    if not customer.get("deleted"):
        account.change(customer, delinquent=True)
    standing.after_failure(account, invoice)
    if following is None and invoice["auto_advance"]:
        standing.after_last_failure(account, invoice)
    return invoice


# Closing.


def void(account: Account, invoice: Object) -> Object:
    """Make an invoice as if it had never been."""
    return _close(account, invoice, "void", "voided_at", "invoice.voided", ("open", "uncollectible"))


def mark_uncollectible(account: Account, invoice: Object) -> Object:
    """Give an invoice up; it can still be paid."""
    return _close(
        account,
        invoice,
        "uncollectible",
        "marked_uncollectible_at",
        "invoice.marked_uncollectible",
        ("open",),
    )


def _close(
    account: Account, invoice: Object, status: str, at: str, event: str, from_statuses: tuple[str, ...]
) -> Object:
    if invoice["status"] not in from_statuses:
        raise invalid(
            f"You can only pass in {' or '.join(from_statuses)} invoices; this one is {invoice['status']}."
        )
    account.schedule("retry", invoice["id"], None)
    return account.change(
        invoice,
        event,
        auto_advance=False,
        next_payment_attempt=None,
        status=status,
        status_transitions={**invoice["status_transitions"], at: account.now},
    )
