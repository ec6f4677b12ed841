"""Customers with counted use, a ledger and an offline Stripe, under a clock that a test moves.

Belongs here: making it, syncing, and reading what each side has. Does not belong here: what must be equal.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.bootstrap import bootstrap, event_name, meter_name
from apex_pipelines.stripe.client import connect
from apex_pipelines.stripe.links import link, stripe_ids
from apex_pipelines.stripe.meter_rules import SlotKey
from apex_pipelines.stripe.meter_summaries import meter_total
from apex_pipelines.stripe.models import MeterLedgerEntry
from apex_pipelines.stripe.usage_sync import SyncReport, UsageSync
from tests.stripe.sandbox import Sandbox, running_sandbox

METRICS = ("impressions", "api_calls", "data_transfer", "mediated_revenue")
# As the model makes it; here a test writes what was counted.
TABLES = (
    "create database if not exists marts",
    "create database if not exists intermediate",
    "drop table if exists marts.metered_usage sync",
    """
    create table marts.metered_usage
    (
        customer_id String, subscription_id String, period_start DateTime64(6, 'UTC'),
        period_end DateTime64(6, 'UTC'), metric_type LowCardinality(String), slot_start DateTime64(6, 'UTC'),
        slot_end DateTime64(6, 'UTC'), quantity Int64, processed_at DateTime64(6, 'UTC')
    )
    engine = ReplacingMergeTree(processed_at)
    order by (customer_id, slot_start, metric_type, subscription_id, period_start)
    """,
    "drop table if exists intermediate.model_watermarks sync",
    """
    create table intermediate.model_watermarks
    (model String, state String, watermark DateTime64(6, 'UTC'), recorded_at DateTime64(6, 'UTC'))
    engine = MergeTree order by recorded_at
    """,
)


@dataclass
class UsageWorld:
    """`counted` holds what each slot's use is now, as the warehouse has it."""

    settings: Settings
    engine: sa.Engine
    warehouse: Client
    sandbox: Sandbox
    clock: ManualClock
    counted: dict[SlotKey, int] = field(default_factory=dict)
    runs: int = 0

    def prepare(self, customers: int) -> list[str]:
        """Tables, meters and linked customers; their ids."""
        for statement in TABLES:
            self.warehouse.command(statement)
        self.sandbox.clock(self.clock.now())
        client = self.sandbox.client()
        with self.engine.begin() as connection:
            bootstrap(client, connection, self.clock.now(), livemode=False)
        return [self.add_customer() for _ in range(customers)]

    def drop_tables(self) -> None:
        for table in ("marts.metered_usage", "intermediate.model_watermarks"):
            self.warehouse.command(f"drop table if exists {table} sync")

    @property
    def yesterday(self) -> datetime:
        """Its first instant."""
        return self.clock.now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)

    def add_customer(self) -> str:
        customer_id = new_customer_id()
        self.link(customer_id)
        return customer_id

    def link(self, customer_id: str) -> str:
        """Make the customer known to Stripe; their id there."""
        created = self.sandbox.client().v1.customers.create({"metadata": {"customer_id": customer_id}})
        with self.engine.begin() as connection:
            link(connection, "customer", customer_id, created.id, self.clock.now(), livemode=False)
        return created.id

    def count(
        self,
        use: dict[SlotKey, int],
        *,
        slot_length: timedelta = timedelta(days=1),
        period: tuple[datetime, datetime] | None = None,
    ) -> None:
        """Let a run of the models have found this to be the use of these slots."""
        self.runs += 1
        first, last = period or (datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC))
        processed_at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.runs)
        rows = [
            [
                customer,
                f"sub_{customer}",
                first,
                last,
                metric,
                start,
                start + slot_length,
                quantity,
                processed_at,
            ]
            for (customer, metric, start), quantity in use.items()
        ]
        self.warehouse.insert("marts.metered_usage", rows)
        self.warehouse.command("optimize table marts.metered_usage final")
        self.counted.update(use)

    def move(self, by: timedelta) -> None:
        """Let time go by, here and at Stripe."""
        self.clock.advance(by)
        self.sandbox.clock(self.clock.now())

    def usage_sync(self) -> UsageSync:
        return UsageSync(
            self.engine, self.warehouse, connect(self.settings), self.clock, livemode=False,
            wait=lambda _seconds: None,
        )  # fmt: skip

    def sync(self, customer_id: str | None = None) -> SyncReport:
        return self.usage_sync().run(customer_id)

    def at_stripe(self) -> dict[SlotKey, int]:
        """What Stripe's meters counted, by slot; only events that count, each as often as it does."""
        ours = self._customers_at_stripe()
        metrics = {event_name(metric): metric for metric in METRICS}
        found: dict[SlotKey, int] = defaultdict(int)
        for event in self.events_at_stripe():
            if event["state"] == "counted":
                start = datetime.fromtimestamp(event["timestamp"], UTC)
                found[ours[event["customer"]], metrics[event["event_name"]], start] += event["value"]
        return {key: value for key, value in found.items() if value}

    def events_at_stripe(self) -> list[dict[str, Any]]:
        """Meter events of this world's customers that Stripe took, in their order."""
        ours = self._customers_at_stripe()
        return [event for event in self.sandbox.meter_events() if event["customer"] in ours]

    def drop_at_stripe(self, identifier: str) -> None:
        """Let Stripe not count an event that it had accepted."""
        [event] = [each for each in self.events_at_stripe() if each["identifier"] == identifier]
        self.sandbox.client().v1.billing.meter_event_adjustments.create(
            {"event_name": event["event_name"], "type": "cancel", "cancel": {"identifier": identifier}}
        )

    def _customers_at_stripe(self) -> dict[str, str]:
        with self.engine.connect() as connection:
            linked = stripe_ids(connection, "customer", livemode=False)
        return {there: here for here, there in linked.items()}

    def summary(self, customer_id: str, metric: str) -> int:
        """What Stripe's summaries say of a customer and metric, of all times."""
        with self.engine.connect() as connection:
            customer = stripe_ids(connection, "customer", livemode=False)[customer_id]
            meter = stripe_ids(connection, "billing.meter", livemode=False)[meter_name(metric)]
        window = (datetime(2020, 1, 1, tzinfo=UTC), self.clock.now().replace(second=0, microsecond=0))
        return meter_total(self.sandbox.client(), meter, customer, window)

    def ledger(self, *states: str) -> dict[SlotKey, int]:
        """Sum of the ledger's entries in these states (not rejected, when none are named), by slot."""
        entry = MeterLedgerEntry
        chosen = entry.state.in_(states) if states else entry.state != "rejected"
        query = (
            sa.select(entry.customer_id, entry.metric_type, entry.slot_start, sa.func.sum(entry.quantity))
            .where(chosen)
            .group_by(entry.customer_id, entry.metric_type, entry.slot_start)
        )
        with self.engine.connect() as connection:
            return {(row[0], row[1], row[2]): int(row[3]) for row in connection.execute(query) if row[3]}

    def used(self) -> dict[SlotKey, int]:
        """What was counted, without empty slots."""
        return {key: quantity for key, quantity in self.counted.items() if quantity}


def new_customer_id() -> str:
    return f"cus_{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def _usage_sandbox(_server_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One for the tests of a module, which have customers of their own: a start costs seconds."""
    with running_sandbox(tmp_path_factory.mktemp("stripe-sandbox"), _server_settings) as sandbox:
        sandbox.clock(datetime(2026, 6, 1, 2, tzinfo=UTC))
        yield sandbox


@pytest.fixture
def usage(
    settings: Settings, engine: sa.Engine, warehouse: Client, _usage_sandbox: Sandbox
) -> Iterator[UsageWorld]:
    """Stands at 02:00 of a day, some days after the last test's."""
    settings.stripe_api_base = _usage_sandbox.url
    settings.stripe_secret_key = _usage_sandbox.key
    settings.stripe_requests_per_second = 1_000
    now = datetime.fromtimestamp(_usage_sandbox.control("GET", "clock")["now"], UTC)
    clock = ManualClock(now.replace(hour=2, minute=0, second=0) + timedelta(days=2))
    made = UsageWorld(settings, engine, warehouse, _usage_sandbox, clock)
    yield made
    _usage_sandbox.no_faults()
    made.drop_tables()
