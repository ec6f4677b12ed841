"""What launches by itself: something to do launches once, a quiet system launches nothing."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.defs.messaging.sensors import email_queue, email_queue_sensor
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.platform.schedules import usage_limits_hourly
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings, child_environment

MARKS = "intermediate.model_watermarks"


@pytest.fixture(autouse=True)
def _environment(
    settings: Settings, engine: sa.Engine, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's resources read the environment; `engine` and `warehouse` have set addresses in `settings`."""
    for name, value in child_environment(settings).items():
        monkeypatch.setenv(name, value)


def scheduled() -> dg.RunRequest | dg.SkipReason:
    found = usage_limits_hourly(dg.build_schedule_context(resources={"stores": Stores()}))
    assert isinstance(found, dg.RunRequest | dg.SkipReason)
    return found


def test_the_hourly_count_runs_for_new_events_and_ended_periods_only(
    warehouse: Client, engine: sa.Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.command("create database if not exists intermediate")
    warehouse.command(f"drop table if exists {MARKS}")
    assert isinstance(scheduled(), dg.RunRequest), "nothing was ever counted"

    warehouse.command(
        f"create table {MARKS} (model String, state Enum8('begun' = 1, 'stored' = 2), "
        "watermark DateTime64(6, 'UTC')) engine = MergeTree order by model"
    )
    try:
        assert isinstance(scheduled(), dg.SkipReason), "nothing has landed"
        warehouse.command(
            "insert into raw.usage_events "
            "(customer_id, event_id, metric_type, quantity, event_time, accepted_at) "
            "values ('c', 'e', 'impressions', 1, '2026-06-01', '2026-06-01')"
        )
        assert isinstance(scheduled(), dg.RunRequest)
        mark = f"insert into {MARKS} select 'int_usage_events', '%s', max(loaded_at) from raw.usage_events"
        warehouse.command(mark % "begun")
        assert isinstance(scheduled(), dg.RunRequest), "a run that only began has counted nothing"
        warehouse.command(mark % "stored")
        assert isinstance(scheduled(), dg.SkipReason)

        with engine.begin() as connection:
            sync_plans(connection)
            customer = create_customer(connection, NewCustomer("A", "a@example.com"), clock.now())
            subscribe(connection, NewSubscription(customer, "indie", clock.now()), clock.now())
        assert isinstance(scheduled(), dg.SkipReason), "its period has not ended"
        monkeypatch.setenv("APEX_CLOCK", (clock.now() + timedelta(days=40)).isoformat())
        assert isinstance(scheduled(), dg.RunRequest), "its period has ended"
    finally:
        warehouse.command(f"drop table {MARKS}")


def test_the_queue_launches_when_a_mail_is_due_and_not_while_its_run_is_under_way(
    engine: sa.Engine, clock: ManualClock
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        assert isinstance(email_queue_sensor(context, stores=Stores()), dg.SkipReason)

        queued = sa.text(
            "insert into events (event_type, data, created_at, not_before) "
            "values ('email.daily_digest', '{}', :now, :at)"
        )
        with engine.begin() as connection:
            connection.execute(queued, {"now": clock.now(), "at": clock.now() + timedelta(hours=1)})
        assert isinstance(email_queue_sensor(context, stores=Stores()), dg.SkipReason), "it is not due yet"
        with engine.begin() as connection:
            connection.execute(queued, {"now": clock.now(), "at": clock.now()})
        request = email_queue_sensor(context, stores=Stores())
        assert isinstance(request, dg.RunRequest)
        assert request.tags["apex/mails_due"] == "1"

        instance.create_run_for_job(
            dg.job(name=email_queue.name)(lambda: None), status=dg.DagsterRunStatus.STARTED
        )
        assert isinstance(email_queue_sensor(context, stores=Stores()), dg.SkipReason)
