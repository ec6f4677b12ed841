"""What Stripe's words mean for a customer's standing with us. Values in, decisions out.

Belongs here: reading the fields of objects that are mirrored, and the rules between Stripe's states and ours.
Does not belong here: asking Stripe, tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from apex_pipelines.billing.store import PaymentAttempt
from apex_pipelines.customers.models import SubscriptionStatus

# Stripe's states that are ours under another name. `unpaid` is one that Stripe has given up to collect, which
# alone suspends nobody: that is decided by dunning. `incomplete` has not begun, so there is no row for it.
_STATUS = {
    "trialing": SubscriptionStatus.TRIALING,
    "active": SubscriptionStatus.ACTIVE,
    "past_due": SubscriptionStatus.PAST_DUE,
    "unpaid": SubscriptionStatus.PAST_DUE,
    "paused": SubscriptionStatus.SUSPENDED,
    "canceled": SubscriptionStatus.CANCELED,
    "incomplete": None,
    "incomplete_expired": None,
}
# Names that `apex stripe bootstrap` gives to products and prices.
_PLAN_PREFIXES = ("price:", "product:")


class UnclearState(ValueError):
    """An object says something that has no counterpart here; the message says what."""


class _Metadata(msgspec.Struct):
    customer_id: str | None = None
    subscription_id: str | None = None
    apex: str | None = None


class _Customer(msgspec.Struct):
    metadata: _Metadata | None = None


class _Recurring(msgspec.Struct):
    usage_type: str = "licensed"


class _Price(msgspec.Struct):
    id: str
    currency: str
    product: str = ""
    lookup_key: str | None = None
    metadata: _Metadata | None = None
    recurring: _Recurring | None = None
    unit_amount: int | None = None


class _Item(msgspec.Struct):
    price: _Price
    current_period_start: int
    current_period_end: int
    quantity: int | None = None


class _Items(msgspec.Struct):
    data: list[_Item]


class _Subscription(msgspec.Struct):
    id: str
    customer: str
    status: str
    items: _Items
    start_date: int
    trial_end: int | None = None
    ended_at: int | None = None
    canceled_at: int | None = None
    metadata: _Metadata | None = None


@dataclass(frozen=True, slots=True)
class StripeSubscription:
    """A subscription in Stripe's words, as far as we follow them.

    Attributes
    ----------
    customer, price_id, product_id : str
        Stripe's ids; price and product are those of the flat price.
    subscription_id : str or None
        Ours, as the metadata has it.
    status : SubscriptionStatus or None
        In our words; None for one that never began.
    ended_at : datetime or None
        When it ended, which may be long after it was asked to.
    """

    id: str
    customer: str
    subscription_id: str | None
    status: SubscriptionStatus | None
    price_id: str
    product_id: str
    price_name: str | None
    base_price_cents: int
    currency: str
    started_at: datetime
    trial_end: datetime | None
    period_start: datetime
    period_end: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class StripeInvoice:
    """An invoice, as far as payments need it; `was_attempted`: somebody tried to collect money for it."""

    id: str
    customer: str
    currency: str
    amount_paid_cents: int
    paid_at: datetime | None
    was_attempted: bool


def customer_id(payload: str) -> str | None:
    """Our id of a customer, as its metadata has it."""
    metadata = msgspec.json.decode(payload, type=_Customer).metadata
    return None if metadata is None else metadata.customer_id


def read_subscription(payload: str) -> StripeSubscription:
    """A subscription from its JSON.

    Raises
    ------
    UnclearState
        If its state is a new one, or there is not one flat price that says what a month costs.
    msgspec.ValidationError
        If a field that we need is missing or of another type.
    """
    told = msgspec.json.decode(payload, type=_Subscription)
    if told.status not in _STATUS:
        raise UnclearState(f"status {told.status!r} is not known; known are {', '.join(_STATUS)}")
    flat = [
        item
        for item in told.items.data
        if item.price.recurring is None or item.price.recurring.usage_type != "metered"
    ]
    if len(flat) != 1:
        raise UnclearState(f"it has {len(flat)} flat prices; one says what the plan's month costs")
    price = flat[0].price
    if price.unit_amount is None:
        raise UnclearState(f"its price {price.id!r} is no whole number of cents a month")
    metadata = told.metadata or _Metadata()
    name = price.lookup_key or (price.metadata or _Metadata()).apex
    return StripeSubscription(
        id=told.id,
        customer=told.customer,
        subscription_id=metadata.subscription_id,
        status=_STATUS[told.status],
        price_id=price.id,
        product_id=price.product,
        price_name=name,
        base_price_cents=price.unit_amount * (1 if flat[0].quantity is None else flat[0].quantity),
        currency=price.currency,
        started_at=_instant(told.start_date),
        trial_end=_optional_instant(told.trial_end),
        period_start=_instant(flat[0].current_period_start),
        period_end=_instant(flat[0].current_period_end),
        ended_at=_optional_instant(told.ended_at or told.canceled_at),
    )


def plan_of(name: str | None) -> str | None:
    """`indie` of `price:indie` or `product:indie`; None for any other name."""
    for prefix in _PLAN_PREFIXES:
        if name is not None and name.startswith(prefix):
            return name.removeprefix(prefix)
    return None


def terms(plan_type: str, told: StripeSubscription) -> str:
    """What of a subscription may be changed on either side, as one text to compare."""
    return terms_text(
        plan_type, told.base_price_cents, told.currency, is_ended=told.status is SubscriptionStatus.CANCELED
    )


def terms_text(plan_type: str, base_price_cents: int, currency: str, *, is_ended: bool) -> str:
    """As `terms`, of either side's values."""
    return f"{plan_type} {base_price_cents} {currency} {'ended' if is_ended else 'open'}"


def decide_status(
    ours: SubscriptionStatus | None, stripes: SubscriptionStatus, *, paid_since: bool
) -> SubscriptionStatus:
    """The status that we should have.

    Suspended is our decision: that Stripe goes on, or goes on trying, does not lift it; a payment does, once
    Stripe says that nothing is due.

    Parameters
    ----------
    paid_since : bool
        Whether an invoice was paid since our status is what it is.
    """
    if ours is not SubscriptionStatus.SUSPENDED or stripes is SubscriptionStatus.CANCELED:
        return stripes
    is_settled = stripes in (SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING)
    return stripes if is_settled and paid_since else ours


def change_date(
    ours: SubscriptionStatus | None,
    told: StripeSubscription,
    changed_at: datetime | None,
    fetched_at: datetime,
) -> datetime:
    """From when on the state holds: a trial ends when it ends, whenever that is noticed."""
    trial_is_over = ours is SubscriptionStatus.TRIALING and told.status is not SubscriptionStatus.TRIALING
    if trial_is_over and told.trial_end is not None and told.trial_end <= fetched_at:
        return told.trial_end
    return changed_at or fetched_at


class _Transitions(msgspec.Struct):
    paid_at: int | None = None


class _Invoice(msgspec.Struct):
    id: str
    customer: str
    currency: str
    status: str | None = None
    amount_due: int = 0
    amount_paid: int = 0
    attempted: bool = False
    status_transitions: _Transitions | None = None


class _Payment(msgspec.Struct):
    payment_intent: str | None = None


class _InvoicePayment(msgspec.Struct):
    payment: _Payment


class _Outcome(msgspec.Struct):
    reason: str | None = None


class _Charge(msgspec.Struct):
    id: str
    created: int
    status: str
    amount: int
    currency: str
    failure_code: str | None = None
    outcome: _Outcome | None = None


def read_invoice(payload: str) -> StripeInvoice:
    """An invoice from its JSON.

    Raises
    ------
    msgspec.ValidationError
        If a field that we need is missing or of another type.
    """
    told = msgspec.json.decode(payload, type=_Invoice)
    paid_at = None if told.status_transitions is None else told.status_transitions.paid_at
    return StripeInvoice(
        id=told.id,
        customer=told.customer,
        currency=told.currency,
        amount_paid_cents=told.amount_paid,
        paid_at=_optional_instant(paid_at) if told.status == "paid" else None,
        was_attempted=told.amount_due > 0 and (told.attempted or told.status == "paid"),
    )


def payment_intents(invoice_payments: Iterable[str]) -> list[str]:
    """Payment intents by which an invoice is, or was to be, paid; from the JSON of its payments."""
    found = (
        msgspec.json.decode(one, type=_InvoicePayment).payment.payment_intent for one in invoice_payments
    )
    return list(dict.fromkeys(intent for intent in found if intent is not None))


def payment_attempts(
    customer_id: str, invoice: StripeInvoice, charges: Sequence[str]
) -> list[PaymentAttempt]:
    """Attempts to collect an invoice: its charges, from the first, those under way left out.

    An invoice that was paid by no charge of Stripe's (out of band) has one more attempt, which succeeded.
    """
    told = [msgspec.json.decode(charge, type=_Charge) for charge in charges]
    told.sort(key=lambda charge: (charge.created, charge.id))
    attempts = [
        PaymentAttempt(
            customer_id=customer_id,
            invoice_id=invoice.id,
            attempt_number=number,
            succeeded=charge.status == "succeeded",
            amount_cents=charge.amount,
            occurred_at=_instant(charge.created),
            failure_code=_failure(charge) if charge.status == "failed" else None,
            currency=charge.currency,
        )
        for number, charge in enumerate(told, start=1)
        if charge.status in ("succeeded", "failed")
    ]
    if invoice.paid_at is not None and not any(charge.status == "succeeded" for charge in told):
        attempts.append(
            PaymentAttempt(
                customer_id,
                invoice.id,
                len(told) + 1,
                True,
                invoice.amount_paid_cents,
                invoice.paid_at,
                currency=invoice.currency,
            )
        )
    return attempts


def _failure(charge: _Charge) -> str:
    """Why the bank declined, where it says more than that it did."""
    reason = charge.outcome.reason if charge.outcome is not None else None
    return reason or charge.failure_code or "unknown"


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _optional_instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else _instant(seconds)
