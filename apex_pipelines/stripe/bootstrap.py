"""What Stripe must have before anybody is billed: products, prices and meters, as the catalogue says.

Belongs here: bringing Stripe's catalogue in line with ours. Does not belong here: customers and subscriptions
(`accounts.py`).

Each plan is a product with a monthly price. Each metric that is billed has a meter, a product and a metered
price of nothing: it puts the exact quantity onto the invoice, and stays the same when a plan changes, since
Stripe bills a metered price only for use after the change. What use costs is computed by one rule, ours, and
posted as invoice items (docs/stripe.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from stripe import InvalidRequestError, StripeClient

from apex_pipelines.platform import catalogue
from apex_pipelines.stripe.links import relink

METER = "billing.meter"
METADATA_KEY = "apex"
METER_CUSTOMER_KEY = "stripe_customer_id"
METER_VALUE_KEY = "value"
Outcome = Literal["created", "found", "changed"]


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """One object of Stripe's catalogue, and what was done about it."""

    object: str
    name: str
    stripe_id: str
    outcome: Outcome


def event_name(metric_type: str) -> str:
    """Name of the events of a metric's meter."""
    return f"apex_{metric_type}"


def plan_price_name(plan_type: str) -> str:
    """Local id and lookup key of a plan's monthly price."""
    return f"price:{plan_type}"


def usage_price_name(metric_type: str, currency: str) -> str:
    """Local id and lookup key of a metric's metered price in a currency: subscriptions have but one."""
    return f"price:usage:{metric_type}:{currency}"


def meter_name(metric_type: str) -> str:
    """Local id of a metric's meter."""
    return f"meter:{metric_type}"


def product_id(name: str) -> str:
    """Stripe lets us choose the ids of products, so that creating one twice finds the first."""
    return f"apex_{name}"


def bootstrap(
    client: StripeClient,
    connection: sa.Connection,
    now: datetime,
    *,
    livemode: bool,
    on_progress: Callable[[Bootstrapped], None] = lambda _done: None,
) -> list[Bootstrapped]:
    """Create what is missing at Stripe and change what differs; safe to repeat, also after a kill half-way.

    A price can't change at Stripe: a plan whose price did gets a new one, which takes over the lookup key.
    Subscriptions keep the one that they have until their plan is set again.

    Raises
    ------
    stripe.StripeError
        As Stripe answers; what was done until then stays, and running it again goes on.
    """
    done = []
    for step in _steps(client):
        relink(connection, step.object, step.name, step.stripe_id, now, livemode=livemode)
        done.append(step)
        on_progress(step)
    return done


def _steps(client: StripeClient) -> Iterator[Bootstrapped]:
    plans = catalogue.plans()
    metrics = [metric for metric in catalogue.metrics().values() if metric.kind == "usage"]
    for plan in plans.values():
        yield _product(client, plan.plan_type, plan.name, None)
        yield _plan_price(client, plan)
    meters = {
        meter.event_name: meter.id
        for meter in client.v1.billing.meters.list({"status": "active", "limit": 100}).auto_paging_iter()
    }
    for metric in metrics:
        meter = _meter(client, metric, meters)
        yield meter
        label = metric.metric_type.replace("_", " ").capitalize()
        yield _product(client, f"usage_{metric.metric_type}", label, metric.unit)
        for currency in sorted({plan.currency for plan in plans.values()}):
            yield _usage_price(client, metric, meter.stripe_id, currency)


def _product(client: StripeClient, name: str, label: str, unit: str | None) -> Bootstrapped:
    stripe_id = product_id(name)
    local = f"product:{name}"
    try:
        found = client.v1.products.retrieve(stripe_id)
    except InvalidRequestError as error:
        if error.code != "resource_missing":
            raise
        params: dict[str, Any] = {"id": stripe_id, "name": label, "metadata": {METADATA_KEY: local}}
        if unit is not None:
            params["unit_label"] = unit
        client.v1.products.create(params, {"idempotency_key": f"bootstrap:{local}"})  # type: ignore[arg-type]
        return Bootstrapped("product", local, stripe_id, "created")
    if found.name == label:
        return Bootstrapped("product", local, stripe_id, "found")
    client.v1.products.update(stripe_id, {"name": label})
    return Bootstrapped("product", local, stripe_id, "changed")


def _plan_price(client: StripeClient, plan: catalogue.Plan) -> Bootstrapped:
    name = plan_price_name(plan.plan_type)
    terms = {"currency": plan.currency, "unit_amount": plan.base_price_cents}
    return _price(client, name, plan.plan_type, terms, {"interval": "month"})


def _usage_price(
    client: StripeClient, metric: catalogue.Metric, meter_id: str, currency: str
) -> Bootstrapped:
    name = usage_price_name(metric.metric_type, currency)
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter_id}
    return _price(
        client, name, f"usage_{metric.metric_type}", {"currency": currency, "unit_amount": 0}, recurring
    )


def _price(
    client: StripeClient, name: str, product: str, terms: dict[str, Any], recurring: dict[str, Any]
) -> Bootstrapped:
    held = client.v1.prices.list({"lookup_keys": [name], "limit": 1, "expand": ["data.recurring"]}).data
    if held:
        found = held[0]
        meter = found.recurring.meter if found.recurring else None
        if (found.currency, found.unit_amount, meter) == (
            terms["currency"],
            terms["unit_amount"],
            recurring.get("meter"),
        ):
            return Bootstrapped("price", name, found.id, "found")
    params = {
        **terms,
        "product": product_id(product),
        "recurring": recurring,
        "lookup_key": name,
        "transfer_lookup_key": True,
        "metadata": {METADATA_KEY: name},
    }
    # The former price is part of the key: a price that went up, down and up again is three.
    before = held[0].id if held else "none"
    key = f"bootstrap:{name}:{terms['unit_amount']}:after:{before}"
    created = client.v1.prices.create(params, {"idempotency_key": key})  # type: ignore[arg-type]
    return Bootstrapped("price", name, created.id, "changed" if held else "created")


def _meter(client: StripeClient, metric: catalogue.Metric, held: dict[str, str]) -> Bootstrapped:
    local, event = meter_name(metric.metric_type), event_name(metric.metric_type)
    if event in held:
        return Bootstrapped(METER, local, held[event], "found")
    created = client.v1.billing.meters.create(
        {
            "display_name": metric.description,
            "event_name": event,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": METER_CUSTOMER_KEY},
            "value_settings": {"event_payload_key": METER_VALUE_KEY},
        },
        {"idempotency_key": f"bootstrap:{local}"},
    )
    return Bootstrapped(METER, local, created.id, "created")
