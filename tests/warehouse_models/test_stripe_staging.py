"""Each typed column of `stg_stripe_*` is what stands in the JSON that was landed, whatever else is in it.

The expected values come from `stripe_columns.py`. The views are built once: they read what is landed at the
moment of the question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.stripe.landing import UnreadableStripeObject, land_objects
from tests.conftest import PROJECT_ROOT
from tests.warehouse_models.conftest import Models
from tests.warehouse_models.stripe_columns import (
    DETAILS,
    VIEWS,
    Document,
    Reader,
    View,
    discounts,
    exact,
    flag,
    instant,
    integer,
    negated,
    parent,
    picked,
    reference,
    text,
)

FIXTURES = PROJECT_ROOT.parent / "shared" / "reference" / "stripe-fixtures.json"
API_VERSION = "2026-10-28.endive"
FETCHED_AT = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)

MISSING = object()


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


def land(
    client: Client, *payloads: str | Document, at: datetime = FETCHED_AT, livemode: bool = False
) -> None:
    land_objects(client, payloads, fetched_at=at, api_version=API_VERSION, livemode=livemode)


def rows_of(models: Models, view: View) -> list[Document]:
    columns = [view.key, *view.columns, "fetched_at"]
    only = f"where credit_type = '{view.object}'" if view.name == "credits" else ""
    query = f"select {', '.join(columns)} from staging.stg_stripe_{view.name} {only} order by {view.key}"
    return [dict(zip(columns, row, strict=True)) for row in models.client.query(query).result_rows]


@pytest.mark.skipif(
    not FIXTURES.exists(),
    reason=f"the published fixtures are not at {FIXTURES}; they are not part of the project",
)
def test_every_column_is_what_the_published_fixture_says(staged: Models) -> None:
    resources = json.loads(FIXTURES.read_text())["resources"]
    within = {"subscription_item": ("subscription", "items"), "line_item": ("invoice", "lines")}
    owners = {owner for owner, _ in within.values()}
    landed_at = {view.object: FETCHED_AT - HOUR if view.object in owners else FETCHED_AT for view in VIEWS}
    for view in VIEWS:
        # The fixtures say livemode at random; a key has one mode.
        fixture = json.dumps(resources[view.object] | {"livemode": False}, ensure_ascii=False)
        land(staged.client, fixture, at=landed_at[view.object])
    for view in VIEWS:
        expected = [picked(view, json.dumps(resources[view.object]), landed_at[view.object])]
        if view.object in within:
            owner, items = within[view.object]
            nested = resources[owner][items]["data"]
            assert nested, view.name
            expected += [picked(view, json.dumps(item), landed_at[owner]) for item in nested]
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
        expected = [picked(view, payload, FETCHED_AT) for payload in payloads[view.object]]
        assert rows_of(staged, view) == expected, view.name


def deletions(models: Models) -> list[tuple[str, str, str, int]]:
    """Type, id, the field `email` and whether it is deleted, of each object."""
    return models.client.query(
        "select object, object_id, JSONExtractString(payload, 'email'), is_deleted "
        "from staging.stg_stripe_objects order by object, object_id"
    ).result_rows  # type: ignore[return-value]


def test_what_is_fetched_later_counts_in_whatever_order_it_lands(staged: Models) -> None:
    newest = {"id": "cus_1", "object": "customer", "email": "new@example.com"}
    land(staged.client, newest, at=FETCHED_AT)
    land(staged.client, newest | {"email": "old@example.com"}, at=FETCHED_AT - HOUR)
    land(staged.client, newest, at=FETCHED_AT)
    for id_ in ("cus_1", "cus_2"):
        land(staged.client, newest | {"id": id_}, at=FETCHED_AT + HOUR, livemode=True)
    assert deletions(staged) == [("customer", "cus_1", "new@example.com", 0)]
    land(staged.client, {"id": "cus_1", "object": "customer", "deleted": True}, at=FETCHED_AT + HOUR)
    staged.client.command("optimize table raw.stripe_objects final")
    assert deletions(staged) == [("customer", "cus_1", "new@example.com", 1)]


def test_an_id_that_comes_back_is_not_deleted_and_one_never_seen_alive_is(staged: Models) -> None:
    land(staged.client, *({"id": id_, "object": "coupon", "deleted": True} for id_ in ("MAY", "JUNE")))
    land(staged.client, {"id": "MAY", "object": "coupon", "email": "again"}, at=FETCHED_AT + HOUR)
    assert deletions(staged) == [("coupon", "JUNE", "", 1), ("coupon", "MAY", "again", 0)]
    assert staged.client.query("select coupon_id from staging.stg_stripe_coupons").result_rows == [("MAY",)]


def test_a_payload_is_stored_to_the_letter_and_an_encoded_one_keeps_its_decimals(staged: Models) -> None:
    written = '{ "object":"price", "id":"price_1", "unit_amount_decimal": "0.10",  "x": 1.10, "é":"\\u00e9" }'
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
    broken = [
        "", "{", "null", "[1, 2]", '"text"', '{"id": "other"}', '{"id": "b", "name": "\\ud800"}', "\u0000",
    ]  # fmt: skip
    for view in VIEWS:
        for number, payload in enumerate(broken):
            insert_past_the_check(staged.client, view.object, f"broken_{number}", payload)
    for view in VIEWS:
        rows = rows_of(staged, view)
        good_row = picked(view, good[view.object], FETCHED_AT)
        assert [row for row in rows if row[view.key] == "good"] == [good_row], view.name
        assert len(rows) == 1 + len(broken), view.name
    with pytest.raises(pytest.fail.Exception, match=f"Got {len(broken) * len(VIEWS)} results"):
        staged.run("test", "--select", "stripe_objects_are_readable")


def test_missing_money_stops_a_run_and_a_new_status_does_not(staged: Models) -> None:
    data_tests = (
        "test", "--select", "path:models/staging/stripe", "path:tests/stripe",
        "--exclude-resource-type", "unit_test",
    )  # fmt: skip
    money = {"object": "charge", "amount": 100, "currency": "usd"}
    land(staged.client, money | {"id": "ch_1", "status": "a status of next year"})
    staged.run(*data_tests)
    land(staged.client, money | {"id": "ch_2", "status": "succeeded", "amount": 10**30})
    paid = {"status": "paid", "currency": "usd", "total": 1, "amount_paid": 1}
    line = {"object": "line_item", "id": "il_1", "invoice": "in_1", "amount": 1, "currency": "usd"}
    cut = {"object": "invoice", "id": "in_1", "lines": {"has_more": True, "data": [line]}}
    land(staged.client, paid | cut)
    with pytest.raises(pytest.fail.Exception) as failed:
        staged.run(*data_tests)
    assert "stripe_amounts_are_there" in str(failed.value)
    assert "stripe_lists_are_whole" in str(failed.value)
    land(staged.client, line | {"id": "il_2"})
    staged.run("test", "--select", "stripe_lists_are_whole")
