"""Our customers and their subscriptions at Stripe.

Belongs here: bringing Stripe in line with what our tables say of who subscribed to what. Does not belong
here: the way back (the mirror), what use costs (`invoice_items.py`).

Our row comes first, then its object at Stripe, then the link between both: whatever is interrupted, running
it again finds what was made, by the idempotency key for a day and by the metadata for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from stripe import (
    APIConnectionError,
    AuthenticationError,
    RateLimitError,
    StripeClient,
    StripeError,
)
from stripe import PermissionError as PermissionError_

from apex_pipelines.customers.models import Customer, SubscriptionStatus
from apex_pipelines.customers.models import Subscription as OurSubscription
from apex_pipelines.platform import catalogue
from apex_pipelines.stripe.bootstrap import plan_price_name, product_id, usage_price_name
from apex_pipelines.stripe.links import LinkConflict, link, mirrored_terms, remember_terms, stripe_ids
from apex_pipelines.stripe.standing import terms_text

# What our subscriptions are told apart by at Stripe.
CUSTOMER_KEY = "customer_id"
SUBSCRIPTION_KEY = "subscription_id"


class NotBootstrapped(LookupError):
    """Stripe lacks a price of the catalogue; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """A customer and one of their subscriptions, as our tables have them; instants are aware."""

    customer_id: str
    name: str
    email: str
    subscription_id: str
    plan_type: str
    status: str
    base_price_cents: int
    currency: str
    started_at: datetime
    trial_end: datetime | None
    current_period_start: datetime
    current_period_end: datetime

    @property
    def terms(self) -> str:
        """What of the subscription may be changed on either side, as the mirror writes it down."""
        ended = self.status == SubscriptionStatus.CANCELED
        return terms_text(self.plan_type, self.base_price_cents, self.currency, is_ended=ended)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was done at Stripe about one account; of a refused one, what Stripe said."""

    customer_id: str
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    outcome: Literal["created", "changed", "canceled", "unchanged", "refused"]
    error: str | None = None


def accounts(connection: sa.Connection, *, customer_id: str | None = None) -> list[Account]:
    """Every subscription with its customer, by customers' age; of a customer the open one comes last."""
    ours = OurSubscription
    query = (
        sa.select(
            Customer.id.label("customer_id"), Customer.name, Customer.email,
            ours.id.label("subscription_id"), ours.plan_type, ours.status, ours.base_price_cents,
            ours.currency, ours.started_at, ours.trial_end, ours.current_period_start,
            ours.current_period_end,
        )
        .join(ours, ours.customer_id == Customer.id)
        .order_by(
            Customer.created_at, Customer.id, ours.status != SubscriptionStatus.CANCELED, ours.started_at
        )
    )  # fmt: skip
    if customer_id is not None:
        query = query.where(Customer.id == customer_id)
    return [Account(**row._mapping) for row in connection.execute(query)]


def push(
    client: StripeClient,
    engine: sa.Engine,
    now: datetime,
    *,
    livemode: bool,
    customer_id: str | None = None,
    on_progress: Callable[[Pushed], None] = lambda _done: None,
) -> list[Pushed]:
    """Create at Stripe whoever is missing there, change plans that differ, cancel what is canceled here.

    Customers whose last subscription ended before it was at Stripe are left out. Whom Stripe refuses is told
    of among the others, with its reason.

    Raises
    ------
    NotBootstrapped
        If the catalogue is not at Stripe yet.
    stripe.StripeError
        As Stripe answers; who was done stays done.
    """
    with engine.connect() as connection:
        found = accounts(connection, customer_id=customer_id)
        customers = stripe_ids(connection, "customer", livemode=livemode)
        subscriptions = stripe_ids(connection, "subscription", livemode=livemode)
        known_terms = mirrored_terms(connection, livemode=livemode)
    prices = Prices(client)
    done = []
    for account in found:
        stripe_customer = customers.get(account.customer_id)
        stripe_subscription = subscriptions.get(account.subscription_id)
        if account.status == SubscriptionStatus.CANCELED and stripe_subscription is None:
            continue
        outcome: Literal["created", "changed", "canceled", "unchanged", "refused"] = "created"
        error = None
        try:
            if stripe_customer is None:
                stripe_customer = create_customer(client, engine, account, now, livemode=livemode)
            if stripe_subscription is None:
                stripe_subscription = create_subscription(
                    client, engine, account, stripe_customer, prices, now, livemode=livemode
                )
            elif known_terms.get(stripe_subscription) == account.terms:
                outcome = "unchanged"
            else:
                outcome = _bring_in_line(
                    client, account, stripe_subscription, prices, known_terms.get(stripe_subscription)
                )
                if outcome != "unchanged":
                    with engine.begin() as connection:
                        remember_terms(connection, stripe_subscription, account.terms, livemode=livemode)
        except (StripeError, LinkConflict) as refusal:
            if is_of_everybody(refusal):
                raise
            # What is wrong with one customer must not keep the others waiting.
            outcome, error = "refused", str(refusal)
        pushed = Pushed(account.customer_id, stripe_customer, stripe_subscription, outcome, error)
        done.append(pushed)
        on_progress(pushed)
    return done


def is_of_everybody(error: Exception) -> bool:
    """Whether Stripe would say the same of any other customer: it is away, or the key is wrong."""
    return isinstance(error, APIConnectionError | AuthenticationError | PermissionError_ | RateLimitError)


def create_customer(
    client: StripeClient, engine: sa.Engine, account: Account, now: datetime, *, livemode: bool
) -> str:
    """Create the account's customer at Stripe, or find the one that an earlier call left; its id there."""
    held = client.v1.customers.list({"email": account.email, "limit": 100})
    for customer in held.auto_paging_iter():
        if _ours(customer, CUSTOMER_KEY) == account.customer_id:
            stripe_id = customer.id
            break
    else:
        created = client.v1.customers.create(
            {
                "name": account.name,
                "email": account.email,
                "metadata": {CUSTOMER_KEY: account.customer_id},
            },
            {"idempotency_key": f"customer:{account.customer_id}:{_digest(account.name, account.email)}"},
        )
        stripe_id = created.id
    with engine.begin() as connection:
        link(connection, "customer", account.customer_id, stripe_id, now, livemode=livemode)
    return stripe_id


def create_subscription(
    client: StripeClient,
    engine: sa.Engine,
    account: Account,
    stripe_customer: str,
    prices: Prices,
    now: datetime,
    *,
    livemode: bool,
) -> str:
    """Create the account's subscription at Stripe, or find the one that an earlier call left; its id there.

    Raises
    ------
    NotBootstrapped
        If the catalogue is not at Stripe yet.
    """
    terms = None
    held = client.v1.subscriptions.list({"customer": stripe_customer, "status": "all", "limit": 100})
    for subscription in held.auto_paging_iter():
        if _ours(subscription, SUBSCRIPTION_KEY) == account.subscription_id:
            stripe_id = subscription.id
            break
    else:
        params: Any = subscription_terms(account) | {
            "customer": stripe_customer,
            "items": [prices.of_plan(account), *prices.of_usage(account.currency)],
            "metadata": {SUBSCRIPTION_KEY: account.subscription_id},
            # A first payment that fails leaves an open invoice to be paid. Without any card Stripe refuses a
            # subscription that costs something at once; trials cost nothing.
            "payment_behavior": "allow_incomplete",
        }
        created = client.v1.subscriptions.create(
            params, {"idempotency_key": f"subscription:{account.subscription_id}:{_digest(str(params))}"}
        )
        stripe_id, terms = created.id, account.terms
    with engine.begin() as connection:
        link(connection, "subscription", account.subscription_id, stripe_id, now, livemode=livemode)
        if terms is not None:
            remember_terms(connection, stripe_id, terms, livemode=livemode)
    return stripe_id


def _digest(*texts: str) -> str:
    """Part of an idempotency key: a request that has changed meanwhile is another one."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def subscription_terms(account: Account) -> dict[str, Any]:
    """When its periods begin and end, in Stripe's words.

    A trial ends when ours does, and months count from there by themselves. Without one they count from the
    subscription's start; a first period that is still running is billed from its start, and a later one was
    paid before Stripe knew of it.
    """
    if account.trial_end is not None and account.status == SubscriptionStatus.TRIALING:
        return {"trial_end": _seconds(account.trial_end)}
    anchor = account.trial_end or account.started_at
    is_first = account.current_period_start == anchor
    return {
        "backdate_start_date": _seconds(account.current_period_start),
        # The day of the anchor itself, so that the 31st comes back after a February.
        "billing_cycle_anchor_config": {
            "day_of_month": anchor.astimezone(UTC).day,
            "hour": anchor.astimezone(UTC).hour,
            "minute": anchor.astimezone(UTC).minute,
            "second": anchor.astimezone(UTC).second,
        },
        "proration_behavior": "create_prorations" if is_first else "none",
    }


def _bring_in_line(
    client: StripeClient, account: Account, stripe_id: str, prices: Prices, known_terms: str | None
) -> Literal["changed", "canceled", "unchanged"]:
    found = client.v1.subscriptions.retrieve(stripe_id)
    if found.status in ("canceled", "incomplete_expired"):
        return "unchanged"
    if account.status == SubscriptionStatus.CANCELED:
        client.v1.subscriptions.cancel(stripe_id)
        return "canceled"
    wanted = prices.of_plan(account)
    flat = next((item for item in found["items"].data if _is_flat(item)), None)
    if flat is None:
        raise LinkConflict(f"subscription {stripe_id} has no price of a month at Stripe; add one there")
    if prices.is_same(flat.price, account):
        return "unchanged"
    theirs = terms_text("", flat.price.unit_amount, flat.price.currency, is_ended=False)
    if known_terms is not None and not known_terms.endswith(theirs):
        return "unchanged"  # it was changed at Stripe since; the mirror brings that here first
    # What the days before and after the change cost is computed by our rule and posted as an item. The client
    # gives each call a key of its own: one of ours would let a change there and back be answered from memory.
    change: Any = {"items": [{"id": flat.id, **wanted}], "proration_behavior": "none"}
    client.v1.subscriptions.update(stripe_id, change)
    return "changed"


class Prices:
    """Ids of the catalogue's prices at Stripe, asked for once."""

    def __init__(self, client: StripeClient) -> None:
        self._client = client
        self._ids: dict[str, str] = {}

    def of_plan(self, account: Account) -> dict[str, Any]:
        """The item for a plan's month: the catalogue's price, or one of the customer's own."""
        plan = catalogue.plans()[account.plan_type]
        if (account.base_price_cents, account.currency) == (plan.base_price_cents, plan.currency):
            return {"price": self._id(plan_price_name(plan.plan_type))}
        return {
            "price_data": {
                "currency": account.currency,
                "product": product_id(plan.plan_type),
                "unit_amount": account.base_price_cents,
                "recurring": {"interval": "month"},
            }
        }

    def of_usage(self, currency: str) -> Iterator[dict[str, Any]]:
        for metric in catalogue.metrics().values():
            if metric.kind == "usage":
                yield {"price": self._id(usage_price_name(metric.metric_type, currency))}

    def is_same(self, price: Any, account: Account) -> bool:
        return (price.product, price.unit_amount, price.currency) == (
            product_id(account.plan_type),
            account.base_price_cents,
            account.currency,
        )

    def _id(self, name: str) -> str:
        if name not in self._ids:
            held = self._client.v1.prices.list({"lookup_keys": [name], "limit": 1}).data
            if not held:
                raise NotBootstrapped(
                    f"Stripe has no price with the lookup key {name!r}; run `apex stripe bootstrap` first"
                )
            self._ids[name] = held[0].id
        return self._ids[name]


def _is_flat(item: Any) -> bool:
    return bool(item.price.recurring and item.price.recurring.usage_type == "licensed")


def _ours(stripe_object: Any, key: str) -> str | None:
    metadata = stripe_object.metadata
    return None if metadata is None else metadata.to_dict().get(key)


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())
