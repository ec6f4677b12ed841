"""Suites over what comes from outside: they pass what the platform lets in, and name each fault."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import (
    NewSubscription,
    PaymentAttempt,
    cancel,
    record_payments,
    subscribe,
    sync_plans,
)
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.quality.checks import SUITE, suites
from apex_pipelines.platform.table_copy import copy_table
from apex_pipelines.quality.sources import SOURCES, Source
from apex_pipelines.quality.validation import BrokenRule, SuiteUnusable, broken_rules
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.landing import land_objects

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BY_TABLE = {source.table: source for source in SOURCES}

# Table to rule to what stands instead in one row that is otherwise right.
FAULTS = {
    "usage_events": {
        "customer_id_has_its_form": "'acme' as customer_id",
        "event_id_has_a_length": "repeat('e', 129) as event_id",
        "metric_is_in_the_catalogue": "'clicks' as metric_type",
        "quantity_is_in_bounds": "toInt64(1e15) + 1 as quantity",
        "correction_says_what_and_why": "-1 as quantity",
        "metadata_is_an_object": "'[1]' as metadata",
        "event_is_not_too_early_or_late": "accepted_at + interval 301 second as event_time",
    },
    "customers": {
        "customer_id_has_its_form": "'acme' as id",
        "name_is_given": "' ' as name",
        "email_has_the_form_of_one": "'nobody' as email",
        "source_is_given": "'' as source",
        "country_is_an_iso_code": "'Narnia' as country",
        "company_size_is_not_negative": "-1 as company_size",
        "created_at_is_past": "toDateTime64('2026-06-01 00:05:01', 6, 'UTC') as created_at",
    },
    "subscriptions": {
        "subscription_id_has_its_form": "'sub_1' as id",
        "customer_id_has_its_form": "'' as customer_id",
        "status_is_known": "'paused' as status",
        "base_price_is_in_bounds": "-1 as base_price_cents",
        "currency_is_in_the_catalogue": "'xyz' as currency",
        "included_impressions_are_not_negative": "-1 as included_impressions",
        "canceled_has_its_time": "null as cancelled_at, 'canceled' as status",
        "started_at_is_past": "toDateTime64('1969-12-31 23:59:59', 6, 'UTC') as started_at",
    },
    "payments": {
        "payment_id_has_its_form": "'pay_1' as id",
        "customer_id_has_its_form": "'cus_1' as customer_id",
        "invoice_is_named": "'' as invoice_id",
        "attempts_count_from_1": "0 as attempt_number",
        "status_is_known": "'refunded' as status",
        "amount_is_in_bounds": "100000001 as amount_cents",
        "currency_is_in_the_catalogue": "'USD' as currency",
        "failure_has_its_code": "'card_declined' as failure_code",
        "occurred_at_is_past": "toDateTime64('2026-06-02 00:00:00', 6, 'UTC') as occurred_at",
    },
    "stripe_objects": {
        "id_is_given": """'' as id, '{"id": "", "object": "charge"}' as payload""",
        "object_is_what_it_says": "'refund' as object",
        "livemode_is_of_the_key": "true as livemode",
        "api_version_is_a_date": "'' as api_version",
        "currency_is_an_iso_code": "replace(payload, 'usd', 'dollars') as payload",
        "amounts_are_in_bounds": "replace(payload, '990', '-99000000000') as payload",
        "fetched_at_is_past": "toDateTime64('2026-06-02 00:00:00', 6, 'UTC') as fetched_at",
    },
}
VERSIONED = ("customers", "subscriptions", "payments")


@pytest.fixture
def outside(engine: sa.Engine, warehouse: Client) -> Client:
    """The warehouse with right rows of every source."""
    started = NOW - timedelta(days=60)
    with engine.begin() as connection:
        sync_plans(connection)
        ids = [
            create_customer(connection, NewCustomer(name, f"{name}@example.com", company_size=size), started)
            for name, size in (("Zoë", None), ("b", 0))
        ]
        for id_ in ids:
            subscribe(connection, NewSubscription(id_, "indie", started), NOW)
        cancel(connection, ids[1], NOW)
        attempts = [
            PaymentAttempt(ids[0], "in_1", number, failure is None, 9_900, NOW, failure)
            for number, failure in ((1, "card_declined"), (2, None))
        ]
        record_payments(connection, attempts)
    for table in VERSIONED:
        copy_table(engine, warehouse, table, NOW)
    names = ["customer_id", "event_id", "metric_type", "quantity", "event_time", "accepted_at", "metadata",
             "corrects_event_id", "correction_reason", "historical"]  # fmt: skip
    latest, earliest = NOW + timedelta(minutes=5), NOW - timedelta(days=35)
    rows = [
        [ids[0], "e1", "impressions", 5, latest, NOW, "{}", "", "", 0],
        [ids[0], "e2", "data_transfer", -5, earliest, NOW, '{"a": "b"}', "e1", "twice", 0],
        [ids[0], "e3", "impressions", 5, NOW - timedelta(days=3_000), NOW, "{}", "", "", 1],
    ]
    warehouse.insert("raw.usage_events", rows, column_names=names)
    # Landed before rows said whether they are of an import.
    old = [ids[0], "e0", "impressions", 5, earliest - timedelta(days=1), NOW, "{}", "", ""]
    warehouse.insert("raw.usage_events", [old], column_names=names[:-1])
    objects: list[Mapping[str, object]] = [
        {"id": "ch_1", "object": "charge", "amount": 990, "currency": "usd", "livemode": False},
        {"id": "ch_2", "object": "charge", "amount": 10**11, "currency": "idr", "livemode": False},
        {"id": "mtr_1", "object": "billing.meter"},
    ]
    land_objects(warehouse, objects, fetched_at=NOW, api_version="2026-10-28.endive", livemode=False)
    return warehouse


def broken(client: Client, source: Source, settings: Settings) -> list[BrokenRule]:
    rows = source.newest_rows(client, settings.quality_rows)
    return broken_rules(rows, source.rules(settings, NOW), source.named_by)


def plant(client: Client, table: str, fault: str, right_rows: str) -> None:
    """One more row, or a newer state of one, that is right but for the fault."""
    replaced = f"{fault}, copy_number + 1 as copy_number" if table in VERSIONED else fault
    chosen = {
        "usage_events": "event_id = 'e1'", "customers": "name = 'Zoë'", "subscriptions": "status = 'active'",
        "payments": "status = 'succeeded'", "stripe_objects": "id = 'ch_1'",
    }[table]  # fmt: skip
    right = f"(select * from {right_rows} where {chosen})"
    client.command(f"insert into raw.{table} select * replace ({replaced}) from {right}")


@pytest.mark.parametrize("table", BY_TABLE)
def test_right_rows_pass_and_each_fault_is_named_with_its_row(
    outside: Client, settings: Settings, table: str
) -> None:
    source = BY_TABLE[table]
    assert source.newest_rows(outside, settings.quality_rows).height >= 2
    assert broken(outside, source, settings) == []
    assert set(FAULTS[table]) == set(source.rules(settings, NOW)), "each rule has a fault that it finds"
    outside.command(f"create or replace table raw.{table}_right as raw.{table}")
    try:
        outside.command(f"insert into raw.{table}_right select * from raw.{table}")
        for rule, fault in FAULTS[table].items():
            plant(outside, table, fault, f"raw.{table}_right")
            found = {broken.rule: broken for broken in broken(outside, source, settings)}
            assert list(found) == [rule]
            assert found[rule].rows == 1
            [example] = found[rule].examples
            assert all(name in example for name in source.named_by)
            outside.command(f"truncate table raw.{table}")
            outside.command(f"insert into raw.{table} select * from raw.{table}_right")
    finally:
        outside.command(f"drop table raw.{table}_right sync")


def test_only_the_newest_rows_are_looked_at(outside: Client, settings: Settings) -> None:
    source = BY_TABLE["payments"]
    plant(outside, "payments", "toString(arrayJoin(range(1000))) as id", "raw.payments")
    settings.quality_rows = 100
    [rule] = broken(outside, source, settings)
    assert (rule.rule, rule.rows, len(rule.examples)) == ("payment_id_has_its_form", 100, 5)
    assert source.newest_rows(outside, 0).is_empty()


def test_a_rule_that_can_not_be_applied_is_an_error_and_no_pass(outside: Client, settings: Settings) -> None:
    source = BY_TABLE["payments"]
    rows = source.newest_rows(outside, 10).drop("status")
    with pytest.raises(SuiteUnusable, match="status_is_known"):
        broken_rules(rows, source.rules(settings, NOW), source.named_by)


def test_the_check_of_the_broken_source_fails_for_a_person_to_read_and_the_others_pass(
    outside: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.clickhouse_url is not None
    monkeypatch.setenv("APEX_CLICKHOUSE_URL", settings.clickhouse_url)
    monkeypatch.setenv("APEX_CLOCK", NOW.isoformat())
    plant(outside, "payments", "'a|b<br>' as status", "raw.payments")
    definitions = dg.Definitions(
        assets=[dg.AssetSpec(["raw", table]) for table in BY_TABLE],
        asset_checks=[suites],
        jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.all_asset_checks())],
        resources={"stores": Stores()},
    )
    run = definitions.resolve_job_def("checks").execute_in_process(raise_on_error=False)
    results = {result.asset_key.path[1]: result for result in run.get_asset_check_evaluations()}
    assert {table for table, result in results.items() if not result.passed} == {"payments"}
    assert set(results) == set(BY_TABLE)
    failed = results["payments"]
    assert (failed.check_name, failed.blocking) == (SUITE, True)
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    assert failed.description == "status_is_known: 1 rows"
    table = str(failed.metadata["broken_rules"].value)
    assert "| status_is_known | 1 | status a\\|b&lt;br>, customer_id cus_" in table
    assert not run.success
