"""The offline Stripe against what Stripe publishes: keys of each object, parameters of each request."""

from __future__ import annotations

import collections.abc
import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import stripe
import stripe.params
import stripe.params.billing
import stripe.params.test_helpers
import stripe.params.v2.core
import typing_extensions
from stripe import _object_classes

from apex_pipelines.sandbox.stripe.parameters import Array, Group, Kind, Required, Unset
from apex_pipelines.sandbox.stripe.routes import Route
from apex_pipelines.sandbox.stripe.server import DOMAINS
from tests.conftest import PROJECT_ROOT
from tests.stripe.sandbox import Sandbox

FIXTURES = PROJECT_ROOT.parent / "shared" / "reference" / "stripe-fixtures.json"
ROUTES = [route for domain in DOMAINS for route in domain.all]


def test_each_object_has_the_keys_that_stripe_publishes(stripe_sandbox: Sandbox) -> None:
    if not FIXTURES.exists():
        pytest.skip("the published fixtures are not here")
    published = json.loads(FIXTURES.read_text())["resources"]
    found = _one_of_each(stripe_sandbox)
    assert len(found) >= 20
    for name, body in found.items():
        fixture = published[name]
        assert set(body) <= set(fixture) | _optional_keys(name), name
        assert _required_keys(name) & set(fixture) <= set(body), name
        for key, value in fixture.items():
            # A part that both have: no key in it is invented either.
            if isinstance(value, dict) and isinstance(body.get(key), dict) and key not in _FREE:
                assert set(body[key]) <= set(value) | _nested_keys(name, key), f"{name}.{key}"


# What people may put anything into, and what is of another type in each event.
_FREE = {"metadata", "payload", "data"}


def _one_of_each(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """One object of each type, by the story of a customer."""
    client = sandbox.client()
    sandbox.behave(finalize_after_seconds=0)
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1_780_272_000})
    meter = client.v1.billing.meters.create(
        {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
    )
    price = client.v1.prices.create(
        {"currency": "usd", "product_data": {"name": "Indie"}, "recurring": {"interval": "month"},
         "unit_amount": 9900}
    )  # fmt: skip
    metered = client.v1.prices.create(
        {"currency": "usd", "product": str(price.product), "unit_amount": 1,
         "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id}}
    )  # fmt: skip
    coupon = client.v1.coupons.create({"duration": "forever", "percent_off": 10})
    customer = client.v1.customers.create({"payment_method": "pm_card_visa", "test_clock": clock.id})
    card = client.v1.customers.payment_methods.list(customer.id).data[0]
    balance = client.v1.customers.balance_transactions.create(customer.id, {"amount": -1, "currency": "usd"})
    item = client.v1.invoice_items.create({"customer": customer.id, "amount": 5, "currency": "usd"})
    subscription = client.v1.subscriptions.create(
        {"customer": customer.id, "items": [{"price": price.id}, {"price": metered.id}],
         "default_payment_method": card.id, "discounts": [{"coupon": coupon.id}],
         "expand": ["discounts", "latest_invoice.payments"]}
    )  # fmt: skip
    event = client.v1.billing.meter_events.create(
        {"event_name": "calls", "payload": {"stripe_customer_id": customer.id, "value": "3"},
         "identifier": "first"}
    )  # fmt: skip
    start = 1_780_272_000
    summary = client.v1.billing.meters.event_summaries.list(
        meter.id, {"customer": customer.id, "start_time": start, "end_time": start + 60}
    ).data[0]
    adjustment = client.v1.billing.meter_event_adjustments.create(
        {"event_name": "calls", "type": "cancel", "cancel": {"identifier": "first"}}
    )
    charge = client.v1.charges.list({"expand": ["data.payment_intent"]}).data[0]
    refund = client.v1.refunds.create({"charge": charge.id, "amount": 1})
    dispute = sandbox.control("POST", "disputes", {"charge": charge.id})
    endpoint = client.v1.webhook_endpoints.create(
        {"url": f"{sandbox.url}/_sandbox/ping", "enabled_events": ["*"]}
    )
    endpoint = client.v1.webhook_endpoints.retrieve(endpoint.id)
    invoice: Any = subscription.latest_invoice
    objects = [
        clock, meter, price, coupon, customer, card, balance, item, subscription, event, summary, adjustment,
        charge, refund, endpoint, invoice, subscription["items"].data[0], invoice.lines.data[0],
        invoice.payments.data[0], charge.payment_intent, client.v1.products.retrieve(str(price.product)),
        client.v1.events.list().data[0],
        subscription.discounts[0],
    ]  # fmt: skip
    found = {body["object"]: json.loads(str(body)) for body in objects}
    return {**found, "dispute": dispute}


def _class_of(object_type: str) -> Any:
    classes = _object_classes.OBJECT_CLASSES
    entry = classes[object_type]
    return getattr(importlib.import_module(entry[0]), entry[1]) if isinstance(entry, tuple) else entry


def _hints(cls: Any) -> dict[str, Any]:
    return {
        name: hint
        for base in cls.__mro__
        if base.__module__.startswith("stripe.") and "Resource" not in base.__name__
        for name, hint in vars(base).get("__annotations__", {}).items()
        if not name.startswith("_") and name.islower() and "ClassVar" not in str(hint)
    }


def _required_keys(object_type: str) -> set[str]:
    """What Stripe's client reads as always there; it says so of some that only few objects have."""
    return {name for name, hint in _hints(_class_of(object_type)).items() if "Optional" not in str(hint)}


def _optional_keys(object_type: str) -> set[str]:
    return set(_hints(_class_of(object_type)))


def _nested_keys(object_type: str, key: str) -> set[str]:
    inner = getattr(_class_of(object_type), "_inner_class_types", {}).get(key)
    return set() if inner is None else set(_hints(inner))


# Parameters.

# Which of the client's types describes a request, where its name doesn't follow from the address.
_TYPES = {
    "POST /v1/customers/{customer}/balance_transactions": "CustomerBalanceTransactionCreateParams",
    "GET /v1/customers/{customer}/balance_transactions": "CustomerBalanceTransactionListParams",
    "GET /v1/customers/{customer}/balance_transactions/{transaction}":
        "CustomerBalanceTransactionRetrieveParams",
    "GET /v1/customers/{customer}/payment_methods": "CustomerPaymentMethodListParams",
    "GET /v1/billing/meters/{meter}/event_summaries": "MeterEventSummaryListParams",
    "GET /v1/invoices/{invoice}/lines": "InvoiceLineItemListParams",
    "POST /v1/invoices/{invoice}/finalize": "InvoiceFinalizeInvoiceParams",
    "POST /v1/invoices/{invoice}/void": "InvoiceVoidInvoiceParams",
    "POST /v1/invoices/{invoice}/send": "InvoiceSendInvoiceParams",
    "DELETE /v1/subscriptions/{subscription}": "SubscriptionCancelParams",
}  # fmt: skip
_SINGULAR = {
    "billing/credit_grants": "CreditGrant",
    "billing/meter_event_adjustments": "MeterEventAdjustment", "billing/meter_events": "MeterEvent",
    "billing/meters": "Meter", "charges": "Charge", "core/events": "Event", "coupons": "Coupon",
    "customers": "Customer", "disputes": "Dispute", "events": "Event", "invoice_payments": "InvoicePayment",
    "invoiceitems": "InvoiceItem", "invoices": "Invoice", "payment_intents": "PaymentIntent",
    "payment_methods": "PaymentMethod", "prices": "Price", "products": "Product", "refunds": "Refund",
    "subscription_items": "SubscriptionItem", "subscriptions": "Subscription",
    "test_helpers/test_clocks": "TestClock", "webhook_endpoints": "WebhookEndpoint",
}  # fmt: skip


def _modules(route: Route) -> list[types.ModuleType]:
    if route.path.startswith("/v2/"):
        return [stripe.params.v2.core]
    return [stripe.params.billing, stripe.params.test_helpers, stripe.params]


# The options that each request takes are described elsewhere, and name what they import for checkers only.
_BASE_NAMES = {**vars(typing), **vars(collections.abc), "StripeContext": str}


def _params_type(route: Route) -> Any:
    name = _TYPES.get(route.name) or _name_of(route)
    for module in _modules(route):
        # The packages load their parts lazily.
        for part in pkgutil.iter_modules(module.__path__):
            if part.name.replace("_", "") == f"{name.lower()}":
                return getattr(importlib.import_module(f"{module.__name__}.{part.name}"), name)
    raise AssertionError(f"{route.name}: the client has no {name}")


def _name_of(route: Route) -> str:
    parts = route.path.split("/")[2:]
    size = 2 if parts[0] in ("billing", "test_helpers", "core") else 1
    kind, rest = _SINGULAR["/".join(parts[:size])], parts[size:]
    if len(rest) == 2:
        verb = rest[1].title().replace("_", "")
    elif route.method == "GET":
        verb = "Retrieve" if rest else "List"
    elif route.method == "DELETE":
        verb = "Delete"
    else:
        verb = "Update" if rest else "Create"
    return f"{kind}{verb}Params"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_each_parameter_that_is_accepted_is_one_of_stripes(route: Route) -> None:
    unknown = list(_unknown(route.parameters, _params_type(route), ""))
    # The client takes these two for itself: a page of /v2 is asked for by its address.
    assert [name for name in unknown if (route.path, name) != ("/v2/core/events", "page")] == []


def _unknown(kind: Kind, described: Any, name: str) -> Iterator[str]:
    """Names in ours that the client's type doesn't have."""
    if isinstance(kind, (Required, Unset)):
        yield from _unknown(kind.kind, described, name)
    elif isinstance(kind, Array):
        inner = [get_args(option)[0] for option in _options(described) if get_origin(option) is list]
        yield from _unknown(kind.of, inner[0], name) if inner else iter([name])
    elif isinstance(kind, Group):
        dicts = [option for option in _options(described) if typing_extensions.is_typeddict(option)]
        known: dict[str, Any] = {}
        for option in dicts:
            names = {**_BASE_NAMES, **vars(importlib.import_module(option.__module__))}
            known |= get_type_hints(option, names)
        for field, below in kind.fields.items():
            if field not in known:
                yield f"{name}[{field}]" if name else field
            else:
                yield from _unknown(below, known[field], f"{name}[{field}]" if name else field)


def _options(described: Any) -> list[Any]:
    """The types that a value may have."""
    origin = get_origin(described)
    if origin is typing_extensions.NotRequired or str(origin) == "typing.NotRequired":
        return _options(get_args(described)[0])
    if origin is types.UnionType or "Union" in str(origin):
        return [each for option in get_args(described) for each in _options(option)]
    return [described]


def test_a_parameter_that_stripe_does_not_have_is_refused(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    wrong: Any = {"emial": "ada@example.com"}
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        client.v1.customers.create(wrong)
    assert (unknown.value.code, unknown.value.param) == ("parameter_unknown", "emial")
    nothing: Any = {}
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.subscriptions.create(nothing)
    assert (missing.value.code, missing.value.http_status) == ("parameter_missing", 400)
    with pytest.raises(stripe.InvalidRequestError) as nobody:
        client.v1.customers.retrieve("cus_nobody")
    assert (nobody.value.code, nobody.value.http_status) == ("resource_missing", 404)
    with pytest.raises(stripe.AuthenticationError):
        stripe.StripeClient("sk_test_other", base_addresses={"api": stripe_sandbox.url}).v1.customers.list()
