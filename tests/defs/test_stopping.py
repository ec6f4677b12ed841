"""A broken check stops what depends on it, and nothing else: the real graph, run by its own executor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from dagster_dbt.errors import DagsterDbtCliRuntimeError

from apex_pipelines.billing.store import (
    NewSubscription,
    PaymentAttempt,
    record_payments,
    subscribe,
    sync_plans,
)
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.definitions import defs as platform
from apex_pipelines.defs.warehouse.stopping import held_until_checked
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stack import dagster_environment

PAYMENTS = dg.AssetKey(["raw", "payments"])
SUBSCRIPTIONS = dg.AssetKey(["staging", "stg_subscriptions"])
CHANGES = dg.AssetKey(["staging", "stg_subscription_changes"])


def _job() -> dg.JobDefinition:
    return platform().resolve_job_def("daily_chain")


@pytest.fixture
def _world(
    settings: Settings, engine: sa.Engine, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name, value in dagster_environment(settings).items():
        monkeypatch.setenv(name, value)
    databases = ("staging", "intermediate", "marts")
    for database in databases:
        warehouse.command(f"drop database if exists {database} sync")
    yield
    for database in databases:
        warehouse.command(f"drop database if exists {database} sync")


@pytest.mark.usefixtures("_world")
def test_what_does_not_depend_on_a_broken_check_is_built_and_the_run_fails(
    warehouse: Client, engine: sa.Engine, clock: ManualClock, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        sync_plans(connection)
        customer = create_customer(connection, NewCustomer("A", "a@example.com"), clock.now())
        subscribe(
            connection, NewSubscription(customer, "indie", clock.now() - timedelta(days=3)), clock.now()
        )
        # A currency that the catalogue does not have: the suite of payments refuses it.
        payment = PaymentAttempt(customer, "in_1", 1, True, 9_900, clock.now(), currency="zzz")
        record_payments(connection, [payment])
        # A plan that the catalogue does not have: tests of stg_subscriptions and of their changes refuse it.
        connection.execute(
            sa.text(
                'insert into plans select (jsonb_populate_record(plans, \'{"plan_type": "odd"}\')).* '
                "from plans where plan_type = 'indie'"
            )
        )
        connection.execute(sa.text("update subscriptions set plan_type = 'odd'"))
    targets = dg.AssetSelection.assets(
        ["lifecycle", "onboarding_steps"],
        ["lifecycle", "at_risk_alerts"],
        ["marts", "customer_health"],
    )
    graph = platform().resolve_asset_graph()
    chosen = targets.upstream().resolve(graph)
    stopped = (
        dg.AssetSelection.assets(PAYMENTS, SUBSCRIPTIONS, CHANGES)
        .downstream(include_self=False)
        .resolve(graph)
    )

    with (
        dg.instance_for_test(temp_dir=str(tmp_path)) as instance,
        dg.execute_job(dg.reconstructable(_job), instance, asset_selection=sorted(chosen)) as run,
    ):
        events = run.all_events
        kept = instance.get_run_by_id(run.run_id)
    built = {event.asset_key for event in events if event.is_step_materialization}
    broken = {
        event.asset_check_evaluation_data.asset_key
        for event in events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
        and not event.asset_check_evaluation_data.passed
    }

    assert broken == {PAYMENTS, SUBSCRIPTIONS, CHANGES}
    assert built == chosen - stopped
    assert {dg.AssetKey(["lifecycle", "onboarding_steps"]), dg.AssetKey(["marts", "onboarding"])} <= built
    assert {dg.AssetKey(["lifecycle", "at_risk_alerts"]), dg.AssetKey(["staging", "stg_payments"])} <= stopped
    assert not run.success, "somebody must hear of it"
    assert kept is not None
    assert kept.tags["dagster/retry_on_asset_or_op_failure"] == "false", "the same data would fail again"
    assert "APEX_DBT_AS_OF_INSTANT" not in os.environ, "the next run in this process has another instant"

    # What was left out is not there, and each table that is there says how many rows it has.
    tables = warehouse.query(
        "select database, name from system.tables where database in ('marts', 'intermediate') "
        "and name not like 'model_watermarks'"
    ).result_rows
    assert {dg.AssetKey(list(table)) for table in tables} == {
        key for key in built if key.path[0] in ("marts", "intermediate")
    }
    counts = {
        event.asset_key: event.step_materialization_data.materialization.metadata.get("dagster/row_count")
        for event in events
        if event.is_step_materialization
    }
    stored = warehouse.query(
        "select database, name from system.tables where database in ('staging', 'intermediate', 'marts') "
        "and engine like '%MergeTree' and name != 'model_watermarks'"
    ).result_rows
    for database, name in stored:
        found = counts[dg.AssetKey([database, name])]
        assert found is not None, name
        assert found.value == warehouse.query(f"select count() from {database}.{name}").result_rows[0][0], (
            name
        )


def test_a_model_that_failed_its_own_check_is_recorded_as_built_and_given_to_nobody() -> None:
    failed = dg.AssetCheckResult(passed=False, asset_key="failed", check_name="holds")
    warned = dg.AssetCheckResult(
        passed=False, asset_key="warned", check_name="holds", severity=dg.AssetCheckSeverity.WARN
    )

    def dbt_ends_with_an_error() -> Iterator[Any]:
        yield dg.Output(None, output_name="failed", metadata={"status": "success"})
        yield failed
        yield dg.Output(None, output_name="warned")
        yield warned
        raise DagsterDbtCliRuntimeError("1 of 2 tests failed")

    calls: list[str] = []
    told = held_until_checked(
        dbt_ends_with_an_error(),
        dg.AssetKey,
        lambda outputs: {outputs[0].output_name: {"dagster/row_count": 3}},
        lambda: calls.append("broken"),
    )

    assert [next(told), next(told)] == [failed, warned]
    assert calls == ["broken"], "a warning breaks nothing"
    recorded = next(told)
    assert isinstance(recorded, dg.AssetMaterialization)
    assert recorded.asset_key == dg.AssetKey("failed")
    assert {name: value.value for name, value in recorded.metadata.items()} == {
        "status": "success", "dagster/row_count": 3,
    }  # fmt: skip
    given = next(told)
    assert isinstance(given, dg.Output)
    assert given.output_name == "warned"
    with pytest.raises(DagsterDbtCliRuntimeError, match="1 of 2 tests failed"):
        next(told)
