"""Each typed column of `stg_stripe_*` is what stands in the JSON that was landed, whatever else is in it.

The expected values are picked out of the JSON by a reader of this file that knows nothing of dbt. The views are
built once: they read what is landed at the moment of the question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.stripe.landing import UnreadableStripeObject, land_objects
from tests.conftest import PROJECT_ROOT
from tests.warehouse_models.conftest import Models

FIXTURES = PROJECT_ROOT.parent / "shared" / "reference" / "stripe-fixtures.json"
API_VERSION = "2026-10-28.endive"
FETCHED_AT = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)

Document = dict[str, Any]
MISSING = object()


def text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return str(value)  # the engine takes what is no 64-bit number for text
    return value if isinstance(value, str) else None


def integer(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return int(value) if fits else None  # type: ignore[call-overload, no-any-return]


def flag(value: object) -> int | None:
    return int(value) if isinstance(value, bool) else None


def instant(value: object) -> datetime | None:
    seconds = integer(value)
    if seconds is None or not 0 <= seconds < 2**32:
        return None
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)  # as the client returns it


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
        "customer_id": (text, "metadata/customer_id"), "customer_name": (text, "name"), "email": (text, "email"),
        "balance_cents": (integer, "balance"), "is_delinquent": (flag, "delinquent"),
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
        "invoice_item_id": (reference, f"{DETAILS}/invoice_item"), "is_proration": (flag, f"{DETAILS}/proration"),
        "price_id": (reference, "pricing/price_details/price"),
        "product_id": (reference, "pricing/price_details/product"), "description": (text, "description"),
        "discount_cents": (discounts, "discount_amounts"), "quantity": (integer, "quantity"),
        "quantity_decimal": (exact, "quantity_decimal"),
        "unit_amount_decimal_cents": (exact, "pricing/unit_amount_decimal"),
        "period_start": (instant, "period/start"), "period_end": (instant, "period/end"), **AMOUNT, **CURRENCY,
    }),
    View("charges", "charge", "charge_id", {
        "payment_intent_id": (reference, "payment_intent"), "payment_method_id": (text, "payment_method"),
        "amount_captured_cents": (integer, "amount_captured"),
        "amount_refunded_cents": (integer, "amount_refunded"), "is_paid": (flag, "paid"),
        "is_captured": (flag, "captured"), "is_refunded": (flag, "refunded"), "is_disputed": (flag, "disputed"),
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


def picked(view: View, payload: str) -> Document:
    document = json.loads(payload, parse_float=Decimal)
    row = {column: read(under(document, path)) for column, (read, path) in view.columns.items()}
    return {view.key: document["id"], **row, "fetched_at": FETCHED_AT.replace(tzinfo=None)}


@pytest.fixture(scope="module")
def _views(_models_server: Models) -> Models:
    _models_server.run("build", "--select", "path:models/staging/stripe", "--resource-type", "model")
    return _models_server


@pytest.fixture
def staged(_views: Models) -> Iterator[Models]:
    """The views on an empty landing table."""
    _views.client.command("truncate table raw.stripe_objects")
    yield _views
    _views.client.command("truncate table raw.stripe_objects")


def land(client: Client, *payloads: str | Document, at: datetime = FETCHED_AT, livemode: bool = False) -> None:
    land_objects(client, payloads, fetched_at=at, api_version=API_VERSION, livemode=livemode)


def rows_of(models: Models, view: View) -> list[Document]:
    columns = [view.key, *view.columns, "fetched_at"]
    only = f"where credit_type = '{view.object}'" if view.name == "credits" else ""
    query = f"select {', '.join(columns)} from staging.stg_stripe_{view.name} {only} order by {view.key}"
    return [dict(zip(columns, row, strict=True)) for row in models.client.query(query).result_rows]


@pytest.mark.skipif(
    not FIXTURES.exists(), reason=f"the published fixtures are not at {FIXTURES}; they are not part of the project"
)
def test_every_column_is_what_the_published_fixture_says(staged: Models) -> None:
    resources = json.loads(FIXTURES.read_text())["resources"]
    # The fixtures say livemode at random; one table holds one mode of a key.
    payloads = {
        view.object: json.dumps(resources[view.object] | {"livemode": False}, ensure_ascii=False)
        for view in VIEWS
    }
    land(staged.client, *payloads.values())
    nested = {"subscription_item": ("subscription", "items"), "line_item": ("invoice", "lines")}
    for view in VIEWS:
        expected = [picked(view, payloads[view.object])]
        if view.object in nested:
            owner, items = nested[view.object]
            within = resources[owner][items]["data"]
            assert within, view.name
            expected += [picked(view, json.dumps(item)) for item in within]
        # An item fetched together with a list that doesn't have it is gone: of the two, the list's own stays.
        expected = [
            row for row in expected
            if view.object != "line_item" or row["invoice_line_id"] != resources["line_item"]["id"]
        ]  # fmt: skip
        assert rows_of(staged, view) == sorted(expected, key=lambda row: str(row[view.key])), view.name


def odd_values(rng: random.Random, read: Reader) -> Any:
    """A value for a field: what it should be, what it could be, or what no one should send."""
    fitting: dict[Reader, list[Any]] = {
        text: ["usd", "", "naïve 漢字 😀", "tab\t\"quoted\" 'it' \\ \u0000 end", "null", "{"],
        integer: [0, 1, -1, 9_900, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)],
        flag: [True, False],
        instant: [0, 1_780_272_000, 2**31, 2**32 - 1, 2**32, -1],
        exact: ["0.0099", "2000", "-0.5", "0.000000000001", "12345678901234.123456789012", 25.5, 33.33, 7],
        reference: ["cus_1", {"id": "cus_2", "object": "customer"}, {"object": "customer"}, {"id": None}],
        discounts: [[], [{"amount": 100}, {"amount": 23}], [{"amount": 5, "discount": {"id": "di_1"}}]],
    }
    fitting[parent] = fitting[reference]
    fitting[negated] = [0, 500, -500, 2**53 + 1]
    if rng.random() < 0.6:
        return rng.choice(fitting[read])
    if read is discounts:
        return rng.choice([None, MISSING, "text", 3])
    return rng.choice([None, MISSING, "", "text", 2**63, 2**64, 10**30, 1.5, True, [], [1], {}, {"id": 5}])


def odd_document(rng: random.Random, view: View, id_: str) -> Document:
    document: Document = {"id": id_, "object": view.object, "ünknown field": [{"deep": None}]}
    for read, path in view.columns.values():
        if path.startswith(DETAILS):
            kind = rng.choice(["invoice_item_details", "subscription_item_details"])
            path = path.replace("=parent.type", kind)
        *steps, last = path.split("/")
        at = document
        for step in steps:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                break
        value = odd_values(rng, read)
        if path == "parent/type" and rng.random() < 0.8:
            value = rng.choice(["invoice_item_details", "subscription_item_details"])
        if isinstance(at, dict) and value is not MISSING:
            at.setdefault(last, value)
    return document


@pytest.mark.parametrize("seed", range(3))
def test_any_value_in_any_field_is_read_as_it_stands_or_is_null(staged: Models, seed: int) -> None:
    rng = random.Random(seed)
    payloads = {
        view.object: [
            json.dumps(odd_document(rng, view, f"{number:03}"), ensure_ascii=rng.random() < 0.5)
            for number in range(60)
        ]
        for view in VIEWS
    }
    land(staged.client, *(payload for some in payloads.values() for payload in some))
    for view in VIEWS:
        expected = [picked(view, payload) for payload in payloads[view.object]]
        assert rows_of(staged, view) == expected, view.name


def deletions(models: Models) -> list[tuple[str, str, str, int]]:
    """Type, id, the field `email` and whether it is deleted, of each object."""
    return models.client.query(
        "select object, object_id, JSONExtractString(payload, 'email'), is_deleted "
        "from staging.stg_stripe_objects order by object, object_id"
    ).result_rows  # type: ignore[return-value]


def test_what_is_fetched_later_counts_in_whatever_order_it_lands(staged: Models) -> None:
    hour = timedelta(hours=1)
    newest = {"id": "cus_1", "object": "customer", "email": "new@example.com"}
    land(staged.client, newest, at=FETCHED_AT)
    land(staged.client, newest | {"email": "old@example.com"}, at=FETCHED_AT - hour)
    land(staged.client, newest, at=FETCHED_AT)
    land(staged.client, newest | {"email": "live@example.com"}, at=FETCHED_AT + hour, livemode=True)
    assert deletions(staged) == [("customer", "cus_1", "new@example.com", 0)]
    land(staged.client, {"id": "cus_1", "object": "customer", "deleted": True}, at=FETCHED_AT + hour)
    staged.client.command("optimize table raw.stripe_objects final")
    assert deletions(staged) == [("customer", "cus_1", "new@example.com", 1)]


def test_an_id_that_comes_back_is_not_deleted_and_one_never_seen_alive_is(staged: Models) -> None:
    hour = timedelta(hours=1)
    land(staged.client, *({"id": id_, "object": "coupon", "deleted": True} for id_ in ("MAY", "JUNE")))
    land(staged.client, {"id": "MAY", "object": "coupon", "email": "again"}, at=FETCHED_AT + hour)
    assert deletions(staged) == [("coupon", "JUNE", "", 1), ("coupon", "MAY", "again", 0)]
    assert staged.client.query("select coupon_id from staging.stg_stripe_coupons").result_rows == [("MAY",)]


def test_a_payload_is_stored_to_the_letter_and_an_encoded_one_keeps_its_decimals(staged: Models) -> None:
    written = '{ "object":"price", "id":"price_1", "unit_amount_decimal": "0.10",  "x": 1.10, "é": "\\u00e9" }'
    encoded = {"object": "price", "id": "price_2", "unit_amount_decimal": Decimal("0.0099")}
    land(staged.client, written, encoded)
    stored = staged.client.query("select payload from raw.stripe_objects order by id").result_rows
    assert stored == [(written,), ('{"object":"price","id":"price_2","unit_amount_decimal":"0.0099"}',)]


@pytest.mark.parametrize(
    ("unreadable", "said"),
    [
        ("", "object 1 of the batch"),
        ('{"id": "cus_2", "object": "customer", ', "object 1 of the batch"),
        ("[]", "object 1 of the batch"),
        (b'{"id": "cus_\xff", "object": "customer"}', "object 1 of the batch"),
        ({"object": "customer"}, "id"),
        ({"id": "", "object": "customer"}, "empty"),
        ({"id": "cus_2", "object": "customer", "livemode": True}, "customer cus_2: livemode is True"),
    ],
)
def test_one_unreadable_object_lands_nothing_and_is_named(
    staged: Models, unreadable: str | bytes | Document, said: str
) -> None:
    good = {"id": "cus_1", "object": "customer"}
    with pytest.raises(UnreadableStripeObject, match=said):
        land_objects(
            staged.client, [good, unreadable], fetched_at=FETCHED_AT, api_version=API_VERSION, livemode=False
        )
    assert staged.client.query("select count() from raw.stripe_objects").result_rows == [(0,)]


def insert_past_the_check(client: Client, object_: str, id_: str, payload: str) -> None:
    """Rows that `land_objects` would refuse; whoever else writes to the table is not bound by it."""
    client.insert(
        "raw.stripe_objects",
        [[object_, id_, False, 0, payload, API_VERSION, FETCHED_AT]],
        column_names=["object", "id", "livemode", "is_deleted", "payload", "api_version", "fetched_at"],
    )


def test_broken_payloads_leave_the_other_rows_alone_and_are_found(staged: Models) -> None:
    good = {view.object: json.dumps({"id": "good", "object": view.object, "created": 5}) for view in VIEWS}
    land(staged.client, *good.values())
    broken = ["", "{", "null", "[1, 2]", '"text"', '{"id": "other"}', '{"id": "b", "name": "\\ud800"}', "\u0000"]
    for view in VIEWS:
        for number, payload in enumerate(broken):
            insert_past_the_check(staged.client, view.object, f"broken_{number}", payload)
    for view in VIEWS:
        rows = rows_of(staged, view)
        assert [row for row in rows if row[view.key] == "good"] == [picked(view, good[view.object])], view.name
        assert len(rows) == 1 + len(broken), view.name
    with pytest.raises(pytest.fail.Exception, match=f"Got {len(broken) * len(VIEWS)} results"):
        staged.run("test", "--select", "stripe_objects_are_readable")


def test_missing_money_stops_a_run_and_a_new_status_does_not(staged: Models) -> None:
    money = {"object": "charge", "amount": 100, "currency": "usd"}
    land(staged.client, money | {"id": "ch_1", "status": "a status of next year"})
    staged.run("test", "--select", "path:models/staging/stripe", "path:tests/stripe")
    land(staged.client, money | {"id": "ch_2", "status": "succeeded", "amount": 10**30})
    cut = {"object": "invoice", "id": "in_1", "status": "paid", "currency": "usd", "total": 1, "amount_paid": 1}
    line = {"object": "line_item", "id": "il_1", "invoice": "in_1", "amount": 1, "currency": "usd"}
    land(staged.client, json.dumps(cut | {"lines": {"has_more": True, "data": [line]}}))
    with pytest.raises(pytest.fail.Exception) as failed:
        staged.run("test", "--select", "path:models/staging/stripe", "path:tests/stripe")
    assert "stripe_amounts_are_there" in str(failed.value)
    assert "stripe_lists_are_whole" in str(failed.value)
    land(staged.client, line | {"id": "il_2"})
    staged.run("test", "--select", "stripe_lists_are_whole")
