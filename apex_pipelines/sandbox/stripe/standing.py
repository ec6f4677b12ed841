"""How a subscription stands: what its payments make of its status.

Belongs here: changes of status that follow from an invoice. Does not belong here: requests about
subscriptions, and making invoices.
"""

from __future__ import annotations

from typing import Any

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.store import Object

ENDED = ("canceled", "incomplete_expired")
UPDATED = "customer.subscription.updated"


def of_invoice(account: Account, invoice: Object) -> Object | None:
    """The subscription that an invoice is for, unless it ended."""
    details = (invoice.get("parent") or {}).get("subscription_details")
    if details is None:
        return None
    found = account.store.get("subscription", details["subscription"])
    return None if found is None or found["status"] in ENDED else found


def after_payment(account: Account, invoice: Object) -> None:
    """A paid invoice: the first one starts a subscription, the last one heals it."""
    subscription = of_invoice(account, invoice)
    if subscription is None:
        return
    if subscription["status"] == "incomplete":
        account.schedule("incomplete_expire", subscription["id"], None)
        account.change(subscription, UPDATED, status="active")
    elif subscription["status"] in ("past_due", "unpaid") and subscription["latest_invoice"] == invoice["id"]:
        account.change(subscription, UPDATED, status="active")


def after_failure(account: Account, invoice: Object) -> None:
    """A payment that failed and will be tried again."""
    subscription = of_invoice(account, invoice)
    if subscription is not None and subscription["status"] == "active":
        account.change(subscription, UPDATED, status="past_due")


def after_last_failure(account: Account, invoice: Object) -> None:
    """No more tries: what the account is set up to do."""
    subscription = of_invoice(account, invoice)
    if subscription is None or subscription["status"] == "incomplete":
        return
    if account.behaviour.after_retries == "cancel":
        end(account, subscription, reason="payment_failed")
    else:
        account.change(subscription, UPDATED, status=account.behaviour.after_retries)


def end(account: Account, subscription: Object, reason: str, **details: Any) -> Object:
    """End a subscription now; what was not paid by then is no longer collected, unless somebody asks."""
    for invoice in account.store.every("invoice", subscription=subscription["id"], status="open"):
        account.schedule("retry", invoice["id"], None)
        account.change(invoice, auto_advance=False, next_payment_attempt=None)
    for kind in ("period", "incomplete_expire", "trial_will_end", "cancel_at"):
        account.schedule(kind, subscription["id"], None)
    return account.change(
        subscription,
        "customer.subscription.deleted",
        status="canceled",
        canceled_at=subscription["canceled_at"] or account.now,
        ended_at=account.now,
        cancellation_details={**subscription["cancellation_details"], "reason": reason, **details},
    )
