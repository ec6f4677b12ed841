"""A warehouse of its own for trigger tests, in which the marts are plain tables that a test fills."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.messaging.providers.outbox import OutboxProvider
from apex_pipelines.messaging.queue import DrainReport, drain
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port, stop, wait_until_up

TODAY = date(2026, 6, 1)

# The columns that triggers read, in the types of the real models.
MARTS = {
    "marts.at_risk_customers": "customer_id String, as_of_date Date, reason LowCardinality(String), "
    "detail String",
    "marts.segment_memberships": "customer_id String, segment LowCardinality(String), entered_on Date, "
    "left_on Nullable(Date)",
    "marts.usage_by_period": "customer_id String, subscription_id String, period_start DateTime64(6, 'UTC'), "
    "period_end DateTime64(6, 'UTC'), metric_type LowCardinality(String), quantity Int64, "
    "included_quantity Nullable(Int64), used_ratio Float64",
    "marts.onboarding": "customer_id String, step LowCardinality(String), occurred_at DateTime64(6, 'UTC')",
    "marts.usage_daily": "customer_id String, usage_date Date, metric_type LowCardinality(String), "
    "quantity Int64, event_count UInt64",
    "marts.daily_digest": "digest_date Date, sign_ups UInt64, sign_ups_by_plan Map(String, UInt64), "
    "integrations UInt64, active_customers UInt64, subscriptions_by_status Map(String, Int64), "
    "mrr_cents Map(String, Int64), cancellations UInt64, payments_succeeded UInt64, payments_failed UInt64, "
    "collected_cents Map(String, Int64), failed_cents Map(String, Int64), "
    "collected_month_to_date_cents Map(String, Int64), revenue_forecast_cents Map(String, Int64), "
    "quantities Map(String, Int64), error_rate Nullable(Float64)",
}


@pytest.fixture(scope="session")
def own_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a served warehouse, which the tests of this folder share."""
    settings = Settings(home=tmp_path_factory.mktemp("lifecycle-warehouse"), warehouse_port=free_port())
    with (settings.home_path / "warehouse.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_pipelines.platform.warehouse",
             "--host", "127.0.0.1", "--port", str(settings.warehouse_port)],
            env=child_environment(settings), stdout=out, stderr=out,
        )  # fmt: skip
        try:
            wait_until_up(f"http://127.0.0.1:{settings.warehouse_port}/ping", process)
            client = clickhouse.connect(settings, query_origin="tests")
            clickhouse.migrate(client)
            client.command("create database if not exists marts")
            for name, columns in MARTS.items():
                client.command(f"create table {name} ({columns}) engine = MergeTree order by tuple()")
            client.close()
            yield settings
        finally:
            stop(process)


@pytest.fixture
def marts(own_warehouse: Settings) -> Iterator[Client]:
    """Client of a warehouse with empty marts."""
    client = clickhouse.connect(own_warehouse, query_origin="tests")
    for name in [*MARTS, "ml.churn_scores"]:
        client.command(f"truncate table {name}")
    yield client
    client.close()


Fill = Callable[[str, Sequence[dict[str, Any]]], None]


@pytest.fixture
def fill(marts: Client) -> Fill:
    """Adds rows to a mart."""

    def add(table: str, rows: Sequence[dict[str, Any]]) -> None:
        names = list(rows[0])
        marts.insert(table, [[row[name] for name in names] for row in rows], column_names=names)

    return add


SignUp = Callable[..., str]


@pytest.fixture
def sign_up(engine: sa.Engine, clock: ManualClock) -> SignUp:
    """Creates a customer who signed up `days_ago` (of TODAY), with a subscription unless `plan` is None."""
    made = 0
    with engine.begin() as connection:
        sync_plans(connection)

    def make(days_ago: int = 60, plan: str | None = "indie", trial: bool = False, **terms: Any) -> str:
        nonlocal made
        made += 1
        created = instant(TODAY - timedelta(days=days_ago), 9)
        new = NewCustomer(name=f"Studio {made}", email=f"studio{made}@example.com", created_at=created)
        with engine.begin() as connection:
            customer = create_customer(connection, new, clock.now())
            if plan is not None:
                subscription = NewSubscription(customer, plan, created, trial=trial, **terms)
                subscribe(connection, subscription, clock.now())
        return customer

    return make


@pytest.fixture
def deliver(engine: sa.Engine, clock: ManualClock, settings: Settings) -> Callable[[], DrainReport]:
    """Sends what is due, into the outbox folder."""
    return lambda: drain(engine, OutboxProvider(settings.outbox_dir), clock, settings=settings)


def instant(day: date, hour: int = 0) -> datetime:
    return datetime.combine(day, time(hour), UTC)


def mails(engine: sa.Engine, customer_id: str | None = None) -> list[str]:
    """Types of the mails queued for a customer (None: for anybody), in order; skipped ones in brackets."""
    query = sa.text(
        "select case when outcome = 'skipped' then '[' || substr(event_type, 7) || ']' "
        "else substr(event_type, 7) end from events "
        "where cast(:customer as text) is null or customer_id = :customer order by id"
    )
    with engine.connect() as connection:
        return list(connection.scalars(query, {"customer": customer_id}))


def mail_data(engine: sa.Engine, email_type: str) -> dict[str, Any]:
    """Data of the one queued mail of a type."""
    with engine.connect() as connection:
        data = connection.scalars(
            sa.text("select data from events where event_type = :type"), {"type": f"email.{email_type}"}
        ).one()
    assert isinstance(data, dict)
    return data
