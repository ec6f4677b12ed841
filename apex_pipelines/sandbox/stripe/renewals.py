"""What the passing of time does to a subscription.

Belongs here: the first invoice, renewals, ends of trials and of subscriptions, ends of what was never paid.
Does not belong here: requests about subscriptions.
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe import discounts, invoice_items, invoices, lines, standing
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid
from apex_pipelines.sandbox.stripe.periods import boundary, period_at
from apex_pipelines.sandbox.stripe.pricing import charges
from apex_pipelines.sandbox.stripe.store import Object

_INCOMPLETE_SECONDS = 23 * 3_600
_WARNING_SECONDS = 3 * 86_400


def items_of(account: Account, subscription: str) -> list[Object]:
    return account.store.every("subscription_item", subscription=subscription)


def is_metered(account: Account, item: Object) -> bool:
    return bool(account.need("price", item["price"])["recurring"]["usage_type"] == "metered")


def interval_of(account: Account, subscription: str) -> Object:
    recurring: Object = account.need("price", items_of(account, subscription)[0]["price"])["recurring"]
    return recurring


def plan_ahead(account: Account, subscription: Object) -> None:
    """Schedule what time will do to a subscription."""
    items = items_of(account, subscription["id"])
    account.schedule("period", subscription["id"], items[0]["current_period_end"])
    account.schedule("cancel_at", subscription["id"], subscription["cancel_at"])
    warning = None
    if subscription["status"] == "trialing" and subscription["trial_end"] - _WARNING_SECONDS > account.now:
        warning = subscription["trial_end"] - _WARNING_SECONDS
    account.schedule("trial_will_end", subscription["id"], warning)


def warn_of_trial_end(account: Account, subscription_id: str) -> None:
    subscription = account.need("subscription", subscription_id)
    if subscription["status"] == "trialing":
        account.emit("customer.subscription.trial_will_end", subscription)


# The first invoice.


def bill_start(account: Account, subscription: Object, behaviour: str, proration: str) -> Object:
    """Make the first invoice and collect it; returns the subscription as it then stands.

    Raises
    ------
    Refusal
        If there is something to pay and no card, or it is declined and `behaviour` says to refuse then.
    """
    customer = account.need("customer", subscription["customer"])
    trial = subscription["status"] == "trialing"
    invoice = _draft(account, subscription, "subscription_create")
    for item in items_of(account, subscription["id"]):
        if not is_metered(account, item):
            _first_lines(account, subscription, invoice, item, proration, trial=trial)
    invoice = _complete(account, subscription, customer, invoice)
    subscription = account.change(subscription, "", latest_invoice=invoice["id"])
    if invoice["collection_method"] == "send_invoice":
        invoices.announce(account, invoice)
        return subscription
    account.emit("invoice.created", invoice)
    if invoice["amount_due"] > 0 and not trial:
        subscription = account.change(subscription, "", status="incomplete")
        account.schedule("incomplete_expire", subscription["id"], account.now + _INCOMPLETE_SECONDS)
        if behaviour != "default_incomplete" and invoices.card_for(account, invoice) is None:
            raise invalid(invoices.NO_CARD, code="resource_missing")
    invoice = invoices.finalize(account, invoice)
    if invoice["status"] == "open" and behaviour != "default_incomplete":
        invoice = invoices.collect(account, invoice)
        if invoice["status"] != "paid" and behaviour == "error_if_incomplete":
            raise Refusal(402, "card_error", "Your card was declined.", code="card_declined")
    return account.need("subscription", subscription["id"])


def _first_lines(
    account: Account, subscription: Object, invoice: Object, item: Object, proration: str, *, trial: bool
) -> None:
    """The first period in advance; up to an anchor ahead, and for time before now, by the second.

    Time before now is one line up to the first period, by an imagined interval that starts with the
    subscription, as Stripe documents for `billing_mode=classic`.
    """
    start, end = item["current_period_start"], item["current_period_end"]
    recurring = account.need("price", item["price"])["recurring"]
    if trial:
        lines.flat(account, invoice, item, (start, end), trial=True)
        return
    imagined = boundary(subscription["start_date"], recurring, 1) - subscription["start_date"]
    if end == subscription["billing_cycle_anchor"]:
        if proration != "none":
            lines.partial(account, invoice, item, (subscription["start_date"], end), imagined)
        return
    if subscription["start_date"] < start and proration != "none":
        lines.partial(account, invoice, item, (subscription["start_date"], start), imagined)
    lines.flat(account, invoice, item, (start, end))


# Renewals.


def end_period(account: Account, subscription_id: str) -> None:
    """A period ended: begin the next one with its invoice, or end the subscription."""
    subscription = account.need("subscription", subscription_id)
    if subscription["status"] in (*standing.ENDED, "paused"):
        return
    items = items_of(account, subscription_id)
    ended = (items[0]["current_period_start"], items[0]["current_period_end"])
    trial = subscription["status"] == "trialing"
    if trial and not _has_card(account, subscription):
        wanted = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
        if wanted == "cancel":
            standing.end(account, subscription, "cancellation_requested")
            return
        if wanted == "pause":
            account.change(subscription, "customer.subscription.paused", status="paused")
            return
    if subscription["cancel_at_period_end"]:
        bill_end(account, subscription, ended, trial=trial)
        standing.end(account, subscription, "cancellation_requested")
        return
    recurring = interval_of(account, subscription_id)
    following = period_at(subscription["billing_cycle_anchor"], recurring, ended[1])
    for item in items:
        account.change(item, "", current_period_start=following[0], current_period_end=following[1])
    renew(account, subscription, ended, following, trial=trial)


def renew(
    account: Account, subscription: Object, ended: lines.Period, following: lines.Period, *, trial: bool
) -> Object:
    """Bill what was used in a period and the next one in advance."""
    customer = account.need("customer", subscription["customer"])
    invoice = _draft(account, subscription, "subscription_cycle", ended)
    account.store.put(invoice, {"trial": trial, "days_until_due": subscription["days_until_due"] or 30})
    for item in items_of(account, subscription["id"]):
        if is_metered(account, item):
            lines.metered(account, invoice, item, ended, trial=trial)
        else:
            lines.flat(account, invoice, item, following)
    invoice = _complete(account, subscription, customer, invoice)
    invoice = _held_back(account, subscription, invoice)
    invoice = invoices.announce(account, invoice)
    status = "active" if trial else subscription["status"]
    subscription = account.change(
        subscription, "customer.subscription.updated", latest_invoice=invoice["id"], status=status
    )
    plan_ahead(account, subscription)
    paused = (subscription["pause_collection"] or {}).get("behavior")
    if paused in ("void", "mark_uncollectible"):
        invoice = invoices.finalize(account, invoice)
        if invoice["status"] == "open":
            close = invoices.void if paused == "void" else invoices.mark_uncollectible
            invoice = close(account, invoice)
    return subscription


def _held_back(account: Account, subscription: Object, invoice: Object) -> Object:
    """Drafts of unpaid subscriptions, and of paused collections, don't advance by themselves."""
    if subscription["status"] == "unpaid" or subscription["pause_collection"]:
        return account.change(invoice, "", auto_advance=False)
    return invoice


def bill_end(account: Account, subscription: Object, ended: lines.Period, *, trial: bool = False) -> None:
    """The last invoice: what was used, and what waits; none when there is neither."""
    customer = account.need("customer", subscription["customer"])
    metered = [item for item in items_of(account, subscription["id"]) if is_metered(account, item)]
    if not metered and not invoice_items.pending(account, customer["id"], subscription["id"]):
        return
    invoice = _draft(account, subscription, "subscription_cycle", ended)
    account.store.put(invoice, {"trial": trial, "days_until_due": subscription["days_until_due"] or 30})
    for item in metered:
        lines.metered(account, invoice, item, ended, trial=trial)
    invoice = _complete(account, subscription, customer, invoice)
    account.change(subscription, "", latest_invoice=invoice["id"])
    invoices.announce(account, invoice)


def bill_now(account: Account, subscription: Object, reason: str = "subscription_update") -> Object:
    """Put what waits onto an invoice and collect it at once."""
    customer = account.need("customer", subscription["customer"])
    invoice = _complete(account, subscription, customer, _draft(account, subscription, reason))
    account.emit("invoice.created", invoice)
    account.change(subscription, "", latest_invoice=invoice["id"])
    return invoices.collect(account, invoices.finalize(account, invoice))


def _draft(account: Account, subscription: Object, reason: str, period: lines.Period | None = None) -> Object:
    customer = account.need("customer", subscription["customer"])
    return invoices.new(
        account,
        customer,
        reason,
        subscription=subscription,
        period=period,
        collection_method=subscription["collection_method"],
        currency=subscription["currency"],
        description=subscription["description"],
    )


def _complete(account: Account, subscription: Object, customer: Object, invoice: Object) -> Object:
    """Add what waits for the next invoice, and the subscription's discounts."""
    for item in invoice_items.pending(account, customer["id"], subscription["id"]):
        invoice_items.draw(account, item, invoice)
    current = account.need("subscription", subscription["id"])
    found = discounts.active(account, current["discounts"])
    invoice = account.change(invoice, "", discounts=[discount["id"] for discount in found])
    invoice = invoices.recount(account, invoice)
    if invoice["total_discount_amounts"] and invoice["subtotal"] > 0:
        left = [discount["id"] for discount in found if not discounts.is_once(account, discount)]
        account.change(current, "", discounts=left)
    return invoice


def _has_card(account: Account, subscription: Object) -> bool:
    customer = account.need("customer", subscription["customer"])
    return bool(
        subscription["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]
    )


# Ends.


def expire_incomplete(account: Account, subscription_id: str) -> None:
    """A first invoice that was not paid within a day: the subscription never began."""
    subscription = account.need("subscription", subscription_id)
    if subscription["status"] != "incomplete":
        return
    invoice = account.need("invoice", subscription["latest_invoice"])
    if invoice["status"] == "open":
        invoices.void(account, invoice)
    for kind in ("period", "trial_will_end", "cancel_at"):
        account.schedule(kind, subscription_id, None)
    account.change(
        subscription, "customer.subscription.updated", status="incomplete_expired", ended_at=account.now
    )


def cancel_at(account: Account, subscription_id: str) -> None:
    """The time came at which a subscription was to end; time that was paid for is not given back."""
    subscription = account.need("subscription", subscription_id)
    if subscription["status"] in standing.ENDED:
        return
    start = items_of(account, subscription_id)[0]["current_period_start"]
    trial = subscription["status"] == "trialing"
    bill_end(account, subscription, (start, account.now), trial=trial)
    standing.end(account, account.need("subscription", subscription_id), "cancellation_requested")


def is_worth(account: Account, item: Object) -> int:
    """What an item costs for a whole period in advance, in cents; a metered one nothing."""
    price = account.need("price", item["price"])
    if price["recurring"]["usage_type"] == "metered":
        return 0
    return sum(charge.amount for charge in charges(price, item["quantity"]))
