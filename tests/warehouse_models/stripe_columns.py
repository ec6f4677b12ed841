"""What each column of `stg_stripe_*` should be, read from Stripe's JSON by means that know nothing of dbt.

Belongs here: readers of one field, and the table of views, columns and paths. Does not belong here: any
object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

Document = dict[str, Any]


def text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return str(value)  # the engine takes what is no 64-bit number for text
    return value if isinstance(value, str) else None


def integer(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return int(value) if fits else None  # type: ignore[call-overload]


def flag(value: object) -> int | None:
    return int(value) if isinstance(value, bool) else None


def instant(value: object) -> datetime | None:
    seconds = integer(value)
    if seconds is None or not 0 <= seconds < 2**32:
        return None
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def exact(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if abs(number) < 10**26 else None


def reference(value: object) -> str | None:
    return value["id"] if isinstance(value, dict) and isinstance(value.get("id"), str) else text(value)


def parent(value: object) -> str:
    return reference(value) or ""


def discounts(value: object) -> int | None:
    return sum(discount["amount"] for discount in value) if isinstance(value, list) else None


def negated(value: object) -> int | None:
    amount = integer(value)
    return None if amount is None else -amount


Reader = Callable[[Any], object]


@dataclass(frozen=True)
class View:
    """A staging view: the type of its objects, its key, and each column's reader and path in the JSON.

    A step `=a.b` is the key that stands as text under `a`, `b` of the document.
    """

    name: str
    object: str
    key: str
    columns: dict[str, tuple[Reader, str]]


CUSTOMER = {"stripe_customer_id": (reference, "customer")}
CURRENCY = {"currency": (text, "currency")}
CREATED = {"created_at": (instant, "created")}
AMOUNT = {"amount_cents": (integer, "amount")}
PAYMENT = {"charge_id": (reference, "charge"), "payment_intent_id": (reference, "payment_intent")}
STATUS = {"status": (text, "status")}
DETAILS = "parent/=parent.type"
VIEWS = [
    View("customers", "customer", "stripe_customer_id", {
        "customer_id": (text, "metadata/customer_id"), "customer_name": (text, "name"),
        "email": (text, "email"), "balance_cents": (integer, "balance"),
        "is_delinquent": (flag, "delinquent"),
        "default_payment_method_id": (reference, "invoice_settings/default_payment_method"),
        **CURRENCY, **CREATED,
    }),
    View("products", "product", "product_id", {
        "product_name": (text, "name"), "is_active": (flag, "active"), "unit_label": (text, "unit_label"),
        "default_price_id": (reference, "default_price"), "updated_at": (instant, "updated"), **CREATED,
    }),
    View("prices", "price", "price_id", {
        "product_id": (reference, "product"), "is_active": (flag, "active"), "price_type": (text, "type"),
        "billing_scheme": (text, "billing_scheme"), "tiers_mode": (text, "tiers_mode"),
        "unit_amount_cents": (integer, "unit_amount"),
        "unit_amount_decimal_cents": (exact, "unit_amount_decimal"),
        "quantity_divisor": (integer, "transform_quantity/divide_by"),
        "quantity_rounding": (text, "transform_quantity/round"),
        "recurring_interval": (text, "recurring/interval"),
        "recurring_interval_count": (integer, "recurring/interval_count"),
        "usage_type": (text, "recurring/usage_type"), "meter_id": (reference, "recurring/meter"),
        "lookup_key": (text, "lookup_key"), "nickname": (text, "nickname"), **CURRENCY, **CREATED,
    }),
    View("subscriptions", "subscription", "subscription_id", {
        "collection_method": (text, "collection_method"),
        "default_payment_method_id": (reference, "default_payment_method"),
        "latest_invoice_id": (reference, "latest_invoice"),
        "pause_behavior": (text, "pause_collection/behavior"),
        "billing_cycle_anchor": (instant, "billing_cycle_anchor"), "started_at": (instant, "start_date"),
        "trial_start": (instant, "trial_start"), "trial_end": (instant, "trial_end"),
        "is_cancel_at_period_end": (flag, "cancel_at_period_end"), "cancel_at": (instant, "cancel_at"),
        "cancelled_at": (instant, "canceled_at"), "ended_at": (instant, "ended_at"),
        **CUSTOMER, **STATUS, **CURRENCY, **CREATED,
    }),
    View("subscription_items", "subscription_item", "subscription_item_id", {
        "subscription_id": (parent, "subscription"), "price_id": (reference, "price"),
        "product_id": (reference, "price/product"), "quantity": (integer, "quantity"),
        "current_period_start": (instant, "current_period_start"),
        "current_period_end": (instant, "current_period_end"), **CREATED,
    }),
    View("invoices", "invoice", "invoice_id", {
        "subscription_id": (reference, "parent/subscription_details/subscription"),
        "invoice_number": (text, "number"), "billing_reason": (text, "billing_reason"),
        "collection_method": (text, "collection_method"), "subtotal_cents": (integer, "subtotal"),
        "total_excluding_tax_cents": (integer, "total_excluding_tax"), "total_cents": (integer, "total"),
        "amount_due_cents": (integer, "amount_due"), "amount_paid_cents": (integer, "amount_paid"),
        "amount_remaining_cents": (integer, "amount_remaining"),
        "pre_payment_credit_notes_cents": (integer, "pre_payment_credit_notes_amount"),
        "post_payment_credit_notes_cents": (integer, "post_payment_credit_notes_amount"),
        "starting_balance_cents": (integer, "starting_balance"),
        "ending_balance_cents": (integer, "ending_balance"), "attempt_count": (integer, "attempt_count"),
        "next_payment_attempt_at": (instant, "next_payment_attempt"),
        "hosted_invoice_url": (text, "hosted_invoice_url"), "period_start": (instant, "period_start"),
        "period_end": (instant, "period_end"), "due_at": (instant, "due_date"),
        "finalized_at": (instant, "status_transitions/finalized_at"),
        "paid_at": (instant, "status_transitions/paid_at"),
        "marked_uncollectible_at": (instant, "status_transitions/marked_uncollectible_at"),
        "voided_at": (instant, "status_transitions/voided_at"), **CUSTOMER, **STATUS, **CURRENCY, **CREATED,
    }),
    View("invoice_lines", "line_item", "invoice_line_id", {
        "invoice_id": (parent, "invoice"), "parent_type": (text, "parent/type"),
        "subscription_id": (reference, f"{DETAILS}/subscription"),
        "subscription_item_id": (reference, f"{DETAILS}/subscription_item"),
        "invoice_item_id": (reference, f"{DETAILS}/invoice_item"),
        "is_proration": (flag, f"{DETAILS}/proration"),
        "price_id": (reference, "pricing/price_details/price"),
        "product_id": (reference, "pricing/price_details/product"), "description": (text, "description"),
        "discount_cents": (discounts, "discount_amounts"), "quantity": (integer, "quantity"),
        "quantity_decimal": (exact, "quantity_decimal"),
        "unit_amount_decimal_cents": (exact, "pricing/unit_amount_decimal"),
        "period_start": (instant, "period/start"), "period_end": (instant, "period/end"),
        **AMOUNT, **CURRENCY,
    }),
    View("charges", "charge", "charge_id", {
        "payment_intent_id": (reference, "payment_intent"), "payment_method_id": (text, "payment_method"),
        "amount_captured_cents": (integer, "amount_captured"),
        "amount_refunded_cents": (integer, "amount_refunded"), "is_paid": (flag, "paid"),
        "is_captured": (flag, "captured"), "is_refunded": (flag, "refunded"),
        "is_disputed": (flag, "disputed"),
        "failure_code": (text, "failure_code"), "failure_message": (text, "failure_message"),
        "outcome_type": (text, "outcome/type"), "outcome_reason": (text, "outcome/reason"),
        "network_decline_code": (text, "outcome/network_decline_code"),
        "network_advice_code": (text, "outcome/network_advice_code"),
        **CUSTOMER, **STATUS, **AMOUNT, **CURRENCY, **CREATED,
    }),
    View("refunds", "refund", "refund_id", {
        "reason": (text, "reason"), "failure_reason": (text, "failure_reason"),
        **PAYMENT, **STATUS, **AMOUNT, **CURRENCY, **CREATED,
    }),
    View("disputes", "dispute", "dispute_id", {
        "reason": (text, "reason"), "is_charge_refundable": (flag, "is_charge_refundable"),
        "evidence_due_at": (instant, "evidence_details/due_by"),
        **PAYMENT, **STATUS, **AMOUNT, **CURRENCY, **CREATED,
    }),
    View("payment_methods", "payment_method", "payment_method_id", {
        "payment_method_type": (text, "type"), "card_brand": (text, "card/brand"),
        "card_funding": (text, "card/funding"), "card_country": (text, "card/country"),
        "card_last4": (text, "card/last4"), "card_exp_month": (integer, "card/exp_month"),
        "card_exp_year": (integer, "card/exp_year"), **CUSTOMER, **CREATED,
    }),
    View("meters", "billing.meter", "meter_id", {
        "meter_name": (text, "display_name"), "event_name": (text, "event_name"),
        "aggregation_formula": (text, "default_aggregation/formula"),
        "event_time_window": (text, "event_time_window"),
        "customer_payload_key": (text, "customer_mapping/event_payload_key"),
        "value_payload_key": (text, "value_settings/event_payload_key"), "updated_at": (instant, "updated"),
        "deactivated_at": (instant, "status_transitions/deactivated_at"), **STATUS, **CREATED,
    }),
    View("coupons", "coupon", "coupon_id", {
        "coupon_name": (text, "name"), "is_valid": (flag, "valid"), "percent_off": (exact, "percent_off"),
        "amount_off_cents": (integer, "amount_off"), "duration": (text, "duration"),
        "duration_in_months": (integer, "duration_in_months"), "redeem_by": (instant, "redeem_by"),
        "max_redemptions": (integer, "max_redemptions"), "times_redeemed": (integer, "times_redeemed"),
        **CURRENCY, **CREATED,
    }),
    View("credits", "customer_balance_transaction", "credit_id", {
        "reason": (text, "type"), "amount_cents": (negated, "amount"), "invoice_id": (reference, "invoice"),
        "effective_at": (instant, "created"), **CUSTOMER, **CURRENCY, **CREATED,
    }),
    View("credits", "billing.credit_grant", "credit_id", {
        "reason": (text, "category"), "currency": (text, "amount/monetary/currency"),
        "amount_cents": (integer, "amount/monetary/value"), "effective_at": (instant, "effective_at"),
        "expires_at": (instant, "expires_at"), "voided_at": (instant, "voided_at"), **CUSTOMER, **CREATED,
    }),
]  # fmt: skip


def under(document: Any, path: str) -> Any:
    """What stands at a path, None when the path ends early."""
    value = document
    for step in path.split("/"):
        key = text(under(document, step[1:].replace(".", "/"))) if step.startswith("=") else step
        value = value.get(key) if isinstance(value, dict) else None
    return value


def picked(view: View, payload: str, fetched_at: datetime) -> Document:
    """The row that a view should have for a payload; times without their zone, as the client returns them."""
    document = json.loads(payload, parse_float=Decimal)
    row = {column: read(under(document, path)) for column, (read, path) in view.columns.items()}
    return {view.key: document["id"], **row, "fetched_at": fetched_at.replace(tzinfo=None)}
