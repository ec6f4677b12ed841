"""Plans that change inside a period.

Belongs here: what the rest of a period is worth, as pending invoice items. Does not belong here: when a plan
changes.
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe import invoice_items, renewals
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.pricing import prorated
from apex_pipelines.sandbox.stripe.store import Object


def credit(account: Account, subscription: Object, item: Object, at: int | None = None) -> None:
    """Give back what an item is worth from now, or from `at`, to the end of its period."""
    _item(account, subscription, item, -1, "Unused time on", at)


def debit(account: Account, subscription: Object, item: Object, at: int | None = None) -> None:
    """Charge what an item is worth from now, or from `at`, to the end of its period."""
    _item(account, subscription, item, 1, "Remaining time on", at)


def _item(
    account: Account, subscription: Object, item: Object, sign: int, words: str, at: int | None
) -> None:
    now = account.now if at is None else at
    start, end = item["current_period_start"], item["current_period_end"]
    amount = sign * prorated(renewals.is_worth(account, item), end - now, end - start)
    if amount == 0:
        return
    customer = account.need("customer", subscription["customer"])
    price = account.need("price", item["price"])
    product = account.need("product", price["product"], deleted=True)
    given = {
        "amount": amount,
        "currency": subscription["currency"],
        "description": f"{words} {product.get('name', product['id'])}",
        "discountable": False,
        "period": {"start": now, "end": end},
        "subscription": subscription["id"],
    }
    invoice_items.new(account, customer, given, proration_of=item)
