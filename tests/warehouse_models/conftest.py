"""A warehouse of their own for the tests of the dbt models, and dbt to run on it.

Belongs here: starting the server, running dbt, writing raw rows. Does not belong here: any expected figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.dbt import dbt_environment, dbt_variables
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port, stop, wait_until_up

AS_OF = date(2026, 6, 1)
_FINE = {"success", "pass", "no-op", "skipped"}
RAW_EVENT_COLUMNS = [
    "customer_id", "event_id", "metric_type", "quantity", "event_time", "accepted_at", "metadata",
    "corrects_event_id", "correction_reason", "historical", "batch_id", "batch_row", "loaded_at",
]  # fmt: skip


@dataclass
class Models:
    """The dbt project on a warehouse that only these tests use."""

    settings: Settings
    client: Client
    work_dir: Path
    changes: int = 0
    parsed: ClassVar[bytes | None] = None  # parsing takes seconds, and is the same for any warehouse

    def command(self, *arguments: str, as_of: date | None = AS_OF, **variables: str | int) -> list[str]:
        """dbt's command line; `as_of` None leaves the variable out, and of an instant it is the day."""
        all_variables: dict[str, str | int] = {}
        if as_of is not None:
            day = as_of.astimezone(UTC).date() if isinstance(as_of, datetime) else as_of
            all_variables = dbt_variables(self.settings, day) | variables
        return [
            str(Path(sys.executable).with_name("dbt")), *arguments,
            "--project-dir", str(self.settings.dbt_project_dir),
            "--target-path", str(self.work_dir / "target"), "--log-path", str(self.work_dir / "log"),
            "--vars", json.dumps(all_variables),
        ]  # fmt: skip

    def environment(self, as_of: date | None = AS_OF) -> dict[str, str]:
        """dbt's environment; of a plain day its end is the run's instant."""
        instant = dbt_environment(as_of) if isinstance(as_of, datetime) else {}
        return (
            os.environ
            | instant
            | {
                "DBT_PROFILES_DIR": str(self.settings.dbt_project_dir),
                "APEX_DBT_HOST": self.settings.warehouse_host,
                "APEX_DBT_PORT": str(self.settings.warehouse_port),
                "APEX_DBT_PASSWORD": clickhouse.warehouse_password(self.settings),
            }
        )

    def start(self, *arguments: str, as_of: date | None = AS_OF) -> subprocess.Popen[str]:
        """dbt, running; for tests that kill it."""
        return subprocess.Popen(
            self.command(*arguments, as_of=as_of),
            env=self.environment(as_of), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, as_of: date | None = AS_OF, **variables: str | int) -> None:
        """Run dbt to its end, in this process, which spares its start and parsing; fails when dbt does."""
        from dbt.cli.main import dbtRunner
        from dbt.contracts.graph.manifest import Manifest

        command = self.command(*arguments, as_of=as_of, **variables)[1:]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(as_of).items():
                patch.setenv(name, value)
            if self.parsed is None:
                parse = dbtRunner().invoke(self.command("parse", as_of=as_of)[1:])
                assert parse.success, parse.exception
                assert isinstance(parse.result, Manifest)
                Models.parsed = parse.result.to_msgpack()
            # A fresh copy each time, because a run leaves its compiled code in it.
            done = dbtRunner(manifest=Manifest.from_msgpack(self.parsed)).invoke(command)
        if not done.success:
            nodes: list[Any] = getattr(done.result, "results", [])
            wrong = [f"{node.node.name}: {node.message}" for node in nodes if node.status not in _FINE]
            pytest.fail(str(wrong or done.exception))

    def build_usage(self, *options: str) -> None:
        """Everything up to `usage_daily`, with the data tests on the way."""
        self.run(
            "build", "--select", "+usage_daily", "--indirect-selection", "buildable",
            "--exclude-resource-type", "unit_test", *options,
        )  # fmt: skip

    def build(self, *models: str, as_of: date = AS_OF, **variables: str | int) -> None:
        """`models` and what they stand on, without tests."""
        self.run(
            "build", "--select", *(f"+{model}" for model in models),
            "--resource-type", "model", "--resource-type", "seed", as_of=as_of, **variables,
        )  # fmt: skip

    def drop_all(self) -> None:
        """Nothing is built any more; raw rows stay."""
        for database in ("staging", "intermediate", "marts"):
            self.client.command(f"drop database if exists {database} sync")
        self.client.command("drop view if exists default.usage_records sync")

    def frame(self, query: str) -> pl.DataFrame:
        """A query's rows."""
        frame = pl.from_arrow(self.client.query_arrow(query))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def insert_events(self, events: list[dict[str, object]]) -> None:
        """Append rows to raw.usage_events; columns that a row leaves out get harmless values."""
        defaults: dict[str, object] = {
            "metadata": "{}", "corrects_event_id": "", "correction_reason": "", "historical": 0,
        }  # fmt: skip
        rows = [[(defaults | event)[column] for column in RAW_EVENT_COLUMNS] for event in events]
        self.client.insert("raw.usage_events", rows, column_names=RAW_EVENT_COLUMNS)

    def insert_customers(self, ids: list[str], created_at: datetime) -> None:
        rows = [[id_, id_, f"{id_}@example.com", "simulator", created_at, created_at] for id_ in ids]
        names = ["id", "name", "email", "source", "created_at", "snapshot_at"]
        self.client.insert("raw.customers", rows, column_names=names)

    def insert_subscription(
        self,
        customer_id: str,
        started_at: datetime,
        *,
        trial_end: datetime | None = None,
        cancelled_at: datetime | None = None,
        plan_type: str = "indie",
        base_price_cents: int = 9_900,
        with_terms: bool = True,
    ) -> None:
        """The customer's subscription as it is now, and unless told otherwise its terms from the start on."""
        columns: dict[str, object] = {
            "id": f"sub_{customer_id}",
            "customer_id": customer_id,
            "plan_type": plan_type,
            "status": "canceled" if cancelled_at else "active",
            "base_price_cents": base_price_cents,
            "currency": "usd",
            "included_impressions": 1_000_000,
            "started_at": started_at,
            "trial_end": trial_end,
            "current_period_start": datetime(2026, 5, 15, tzinfo=UTC),
            "current_period_end": datetime(2026, 6, 15, tzinfo=UTC),
            "cancelled_at": cancelled_at,
            "snapshot_at": started_at,
        }
        self.client.insert("raw.subscriptions", [list(columns.values())], column_names=list(columns))
        if with_terms:
            self.change_terms(customer_id, started_at, plan_type=plan_type, base_price_cents=base_price_cents)

    def change_terms(
        self,
        customer_id: str,
        effective_at: datetime,
        *,
        plan_type: str = "indie",
        status: str = "active",
        base_price_cents: int = 9_900,
        included_impressions: int = 1_000_000,
    ) -> None:
        """Terms of the customer's subscription from an instant on; later calls win at the same instant."""
        self.changes += 1
        columns: dict[str, object] = {
            "id": self.changes,
            "subscription_id": f"sub_{customer_id}",
            "customer_id": customer_id,
            "effective_at": effective_at,
            "plan_type": plan_type,
            "status": status,
            "base_price_cents": base_price_cents,
            "currency": "usd",
            "included_impressions": included_impressions,
            "snapshot_at": effective_at,
        }
        self.client.insert("raw.subscription_changes", [list(columns.values())], column_names=list(columns))


@pytest.fixture(scope="module")
def _models_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    home = tmp_path_factory.mktemp("models")
    settings = Settings(home=home, warehouse_port=free_port())
    with (home / "warehouse.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_pipelines.platform.warehouse",
             "--host", settings.warehouse_host, "--port", str(settings.warehouse_port)],
            env=child_environment(settings), stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_until_up(f"http://{settings.warehouse_host}:{settings.warehouse_port}/ping", process)
            client = clickhouse.connect(settings, query_origin="tests")
            clickhouse.migrate(client)
            yield Models(settings, client, home)
            client.close()
        finally:
            stop(process)


@pytest.fixture
def models(_models_server: Models) -> Models:
    """The project on empty raw tables and with nothing built yet."""
    client = _models_server.client
    _models_server.drop_all()
    for table in ("usage_events", "customers", "subscriptions", "subscription_changes", "payments", "events",
                  "email_log", "webhook_inbox", "stripe_objects", "stripe_meter_ledger",
                  "stripe_meter_summaries"):  # fmt: skip
        client.command(f"truncate table raw.{table}")
    client.command("truncate table ml.churn_scores")
    return _models_server
