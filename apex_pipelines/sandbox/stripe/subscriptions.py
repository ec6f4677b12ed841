"""Subscriptions and their items.

Belongs here: `/v1/subscriptions` and `/v1/subscription_items`. Does not belong here: their invoices.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from apex_pipelines.sandbox.stripe import (
    catalogue,
    customers,
    discounts,
    payment_methods,
    prorations,
    renewals,
    standing,
)
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Array,
    Flag,
    Given,
    Group,
    Integer,
    Number,
    Range,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.periods import boundary, period_at
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_DAY = 86_400
_BILLED_AFTER_TRIAL = {"end_behavior": {"missing_payment_method": "create_invoice"}}
_PRICE_DATA = Group(
    currency=Required(CURRENCY),
    product=Required(Text()),
    recurring=Required(
        Group(
            interval=Required(Text(choices=("day", "week", "month", "year"))),
            interval_count=Integer(minimum=1),
        )
    ),
    tax_behavior=Text(choices=("exclusive", "inclusive", "unspecified")),
    unit_amount=Integer(),
    unit_amount_decimal=Number(),
)
ITEM = Group(metadata=TextMap(), price=Text(), price_data=_PRICE_DATA, quantity=Integer(minimum=0))
PRORATION = Text(choices=("always_invoice", "create_prorations", "none"))
_TRIAL_SETTINGS = Group(
    end_behavior=Required(
        Group(missing_payment_method=Required(Text(choices=("cancel", "create_invoice", "pause"))))
    )
)
SHARED = Group(
    cancel_at=Integer(unset=True),
    cancel_at_period_end=Flag(),
    collection_method=Text(choices=("charge_automatically", "send_invoice")),
    days_until_due=Integer(minimum=0),
    default_payment_method=Text(unset=True),
    description=Text(500, unset=True),
    discounts=Array(Group(coupon=Required(Text())), unset=True),
    metadata=TextMap(),
    off_session=Flag(),
    payment_behavior=Text(
        choices=("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
    ),
    proration_behavior=PRORATION,
    trial_end=Integer(words=("now",)),
    trial_settings=_TRIAL_SETTINGS,
)
_ANCHOR_CONFIG = Group(
    day_of_month=Required(Integer(minimum=1)),
    hour=Integer(minimum=0),
    minute=Integer(minimum=0),
    month=Integer(minimum=1),
    second=Integer(minimum=0),
)
PLAIN = (
    "cancel_at",
    "collection_method",
    "days_until_due",
    "default_payment_method",
    "description",
    "trial_settings",
)


@routes.post(
    "/v1/subscriptions",
    SHARED,
    backdate_start_date=Integer(),
    billing_cycle_anchor=Integer(),
    billing_cycle_anchor_config=_ANCHOR_CONFIG,
    currency=CURRENCY,
    customer=Required(Text()),
    items=Required(Array(ITEM)),
    trial_period_days=Integer(minimum=0),
)
def create(account: Account, given: Given) -> Object:
    customer = customers.need(account, given["customer"])
    prices = [price_of(account, item, f"items[{number}]") for number, item in enumerate(given["items"])]
    recurring = _shared_interval(prices)
    trial_end = _trial_end(account, given)
    start = given.get("backdate_start_date", account.now)
    if start > account.now:
        raise invalid("backdate_start_date must be in the past.", "backdate_start_date")
    anchor = _anchor(account, given, recurring) or trial_end or account.now
    subscription_id = account.new_id("sub")
    body: Object = {
        **_blank(account, customer),
        "id": subscription_id,
        "billing_cycle_anchor": anchor,
        "billing_cycle_anchor_config": _kept_config(given),
        "cancel_at": given.get("cancel_at"),
        "cancel_at_period_end": given.get("cancel_at_period_end", False),
        "collection_method": given.get("collection_method", "charge_automatically"),
        "currency": prices[0]["currency"],
        "days_until_due": given.get("days_until_due"),
        "default_payment_method": own_card(account, customer["id"], given),
        "description": given.get("description"),
        "metadata": merged_metadata({}, given),
        "start_date": start,
        "status": "trialing" if trial_end else "active",
        "trial_end": trial_end,
        "trial_settings": given.get("trial_settings", _BILLED_AFTER_TRIAL),
        "trial_start": account.now if trial_end else None,
    }
    body["discounts"] = discounts.redeem(account, customer["id"], body["id"], given.get("discounts", []))
    account.create(body, quiet=True)
    account.change(customer, "", currency=body["currency"])
    period = _first_period(account, body, recurring)
    for item, price in zip(given["items"], prices, strict=True):
        add_item(account, body, item, price, period)
    renewals.plan_ahead(account, body)
    body = renewals.bill_start(
        account,
        body,
        given.get("payment_behavior", "allow_incomplete"),
        given.get("proration_behavior", "create_prorations"),
    )
    account.emit("customer.subscription.created", body)
    return body


def _anchor(account: Account, given: Given, recurring: Object) -> int | None:
    """The anchor that was asked for, which is to come; a day of the month becomes its next occurrence."""
    config = given.get("billing_cycle_anchor_config")
    if config is None:
        anchor: int | None = given.get("billing_cycle_anchor")
        if anchor is not None and not account.now <= anchor <= boundary(account.now, recurring, 1):
            raise invalid(
                "billing_cycle_anchor must be in the future and within the first natural billing period.",
                "billing_cycle_anchor",
            )
        return anchor
    if "billing_cycle_anchor" in given:
        raise invalid("You may only specify one of billing_cycle_anchor and billing_cycle_anchor_config.")
    if config["day_of_month"] > 31 or "month" in config or recurring["interval"] != "month":
        raise invalid("An anchor's day of the month is played for monthly prices only.")
    now = datetime.fromtimestamp(account.now, UTC)
    # A month with 31 days, from which periods can be counted: the 31st comes back after a shorter month.
    first = datetime(now.year - 1, 12, config["day_of_month"], tzinfo=UTC).replace(
        hour=config.get("hour", now.hour),
        minute=config.get("minute", now.minute),
        second=config.get("second", now.second),
    )
    return period_at(int(first.timestamp()), recurring, account.now - 1)[1]


def _kept_config(given: Given) -> Object | None:
    config = given.get("billing_cycle_anchor_config")
    return None if config is None else {name: config.get(name) for name in _ANCHOR_CONFIG.fields}


def _first_period(account: Account, body: Object, recurring: Object) -> tuple[int, int]:
    """A first period up to an anchor ahead began with the subscription, another one begins now."""
    anchor = body["billing_cycle_anchor"]
    if anchor > account.now:
        return (account.now if body["trial_end"] else body["start_date"]), anchor
    return period_at(anchor, recurring, account.now)


def own_card(account: Account, customer: str, given: Given) -> str | None:
    card = given.get("default_payment_method")
    return None if card is None else str(payment_methods.stored(account, card, customer)["id"])


def _blank(account: Account, customer: Object) -> Object:
    return {
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "created": account.now,
        "customer": customer["id"],
        "customer_account": None,
        "default_source": None,
        "default_tax_rates": [],
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "test_clock": customer["test_clock"],
        "transfer_data": None,
    }


def price_of(account: Account, item: Given, name: str) -> Object:
    """The price of an item, made when the item has its data."""
    if ("price" in item) == ("price_data" in item):
        raise invalid(f"You must pass one of {name}[price] and {name}[price_data].", f"{name}[price]")
    if "price_data" in item:
        account.need("product", item["price_data"]["product"], f"{name}[price_data][product]")
        price = catalogue.create_price(account, item["price_data"])
    else:
        price = account.need("price", item["price"], f"{name}[price]")
    if price["type"] != "recurring":
        raise invalid(f"The price {price['id']} is set to `type=one_time` but needs to be recurring.", name)
    if not price["active"]:
        raise invalid(f"The price {price['id']} is inactive.", f"{name}[price]")
    return price


def _shared_interval(prices: list[Object]) -> Object:
    """The interval of all prices; different ones in a subscription are not played here."""
    kinds = {(price["recurring"]["interval"], price["recurring"]["interval_count"]) for price in prices}
    if len(kinds) != 1 or len({price["currency"] for price in prices}) != 1:
        raise invalid("All prices of a subscription must have one currency and one interval.", "items")
    recurring: Object = prices[0]["recurring"]
    return recurring


def _trial_end(account: Account, given: Given) -> int | None:
    if "trial_end" in given and "trial_period_days" in given:
        raise invalid("You may only specify one of these parameters: trial_end, trial_period_days.")
    if given.get("trial_period_days"):
        return account.now + int(given["trial_period_days"]) * _DAY
    end = given.get("trial_end")
    if end is None or end == "now":
        return None
    if end <= account.now:
        raise invalid("Timestamp must be an integer Unix timestamp in the future.", "trial_end")
    return int(end)


def add_item(
    account: Account, subscription: Object, item: Given, price: Object, period: tuple[int, int]
) -> Object:
    """Put a price into a subscription; use counts from now on."""
    metered = price["recurring"]["usage_type"] == "metered"
    if metered and "quantity" in item:
        raise invalid("`quantity` can't be given for a metered price.", "items")
    body: dict[str, Any] = {
        "id": account.new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": account.now,
        "current_period_end": period[1],
        "current_period_start": period[0],
        "discounts": [],
        "metadata": merged_metadata({}, item),
        "price": price["id"],
        "subscription": subscription["id"],
        "tax_rates": [],
    }
    if not metered:
        body["quantity"] = item.get("quantity", 1)
    return account.create(body, quiet=True)


@routes.get("/v1/subscriptions/{subscription}")
def retrieve(account: Account, given: Given, subscription: str) -> Object:
    return account.need("subscription", subscription)


def need_open(account: Account, subscription: str) -> Object:
    """A subscription that has not ended, at its own time."""
    body = account.need("subscription", subscription)
    account.live_by(body["test_clock"])
    if body["status"] in standing.ENDED:
        raise invalid(f"No such subscription: '{subscription}'", "id", "resource_missing")
    return body


@routes.delete(
    "/v1/subscriptions/{subscription}",
    cancellation_details=Group(comment=Text(unset=True), feedback=Text(unset=True)),
    invoice_now=Flag(),
    prorate=Flag(),
)
def cancel(account: Account, given: Given, subscription: str) -> Object:
    """End now; what was used is billed only with `invoice_now`, what was paid comes back with `prorate`."""
    body = need_open(account, subscription)
    items = renewals.items_of(account, subscription)
    if given.get("prorate") and body["status"] in ("active", "past_due"):
        for item in items:
            prorations.credit(account, body, item)
    if given.get("invoice_now"):
        renewals.bill_end(account, body, (items[0]["current_period_start"], account.now))
        body = account.need("subscription", subscription)
    return standing.end(account, body, "cancellation_requested", **given.get("cancellation_details", {}))


@routes.list(
    "/v1/subscriptions",
    created=Range(),
    customer=Text(),
    price=Text(),
    status=Text(
        choices=(
            "active", "all", "canceled", "ended", "incomplete", "incomplete_expired", "past_due", "paused",
            "trialing", "unpaid",
        )
    ),
    test_clock=Text(),
)  # fmt: skip
def list_all(account: Account, given: Given) -> Page:
    """Subscriptions; those that are canceled only when they are asked for."""
    ended = ["canceled", "incomplete_expired"]
    status = {
        "all": None,
        "ended": ended,
        None: ["active", "incomplete", "past_due", "paused", "trialing", "unpaid"],
    }.get(given.get("status"), given.get("status"))
    where = {
        "customer": given.get("customer"),
        "status": status,
        "test_clock": given.get("test_clock"),
    }
    if "price" in given:
        items = account.store.every("subscription_item", price=given["price"])
        where["id"] = [item["subscription"] for item in items]
    return page(account, "subscription", "/v1/subscriptions", given, where)


@routes.list("/v1/subscription_items", subscription=Required(Text()))
def list_items(account: Account, given: Given) -> Page:
    account.need("subscription", given["subscription"], "subscription")
    where = {"subscription": given["subscription"]}
    return page(account, "subscription_item", "/v1/subscription_items", given, where, newest_first=False)


@routes.get("/v1/subscription_items/{item}")
def retrieve_item(account: Account, given: Given, item: str) -> Object:
    return account.need("subscription_item", item)


def cancel_all(account: Account, customer: str) -> None:
    """Cancel what a customer that is deleted had."""
    for body in account.store.every("subscription", customer=customer):
        if body["status"] not in standing.ENDED:
            standing.end(account, body, "cancellation_requested")
