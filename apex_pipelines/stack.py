"""What the platform is made of: its processes, in the order in which they start.

Belongs here: names, commands, ports and readiness. Does not belong here: how processes are kept alive
(`platform/supervisor.py`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import sqlalchemy as sa
from alembic.util import CommandError
from clickhouse_connect.driver.exceptions import ClickHouseError

from apex_pipelines.billing.store import sync_plans
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.platform.supervisor import Component, Process, ProcessRecord, StackError, write_record
from apex_pipelines.settings import PROJECT_ROOT, Settings, child_environment

MINIMUM_FREE_BYTES = 500_000_000


class Part(StrEnum):
    """Parts of the platform that can be started apart."""

    STORES = "stores"
    INGEST = "ingest"
    DAGSTER = "dagster"


def answers(url: str) -> Callable[[], bool]:
    """A readiness check: True when `url` answers 200."""

    def check() -> bool:
        try:
            return httpx.get(url, timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    return check


def check_home_path(settings: Settings) -> None:
    """Raise `StackError` when the data folder's path has characters that the embedded stores can't take."""
    found = re.search(r"[\s?&%#+;'\"]", str(settings.home_path))
    if found:
        raise StackError(
            f"the data folder {settings.home_path} has {found.group()!r} in its path, which the embedded "
            "stores can't take; set APEX_HOME to a folder without spaces and without ? & % # + ; or quotes"
        )


def check_free_disk(settings: Settings) -> None:
    """Raise `StackError` when the data folder's disk is nearly full: stores that run into it stop badly."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home_path).free
    if free < MINIMUM_FREE_BYTES:
        raise StackError(
            f"only {free / 1e6:.0f} MB are free on the disk of {settings.home_path}, "
            f"{MINIMUM_FREE_BYTES / 1e6:.0f} MB are needed; free some or set APEX_HOME to another disk"
        )


class EmbeddedPostgres:
    """The embedded PostgreSQL as a component: migrated when it starts, restarted when it was killed."""

    name = "postgres"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._process: psutil.Process | None = None

    def start(self) -> None:
        try:
            url = postgres.start_embedded(self.settings)
        except (subprocess.SubprocessError, OSError, sa.exc.SQLAlchemyError) as error:
            raise StackError(
                f"PostgreSQL could not be started: {error} (its log: {postgres.postgres_log(self.settings)})"
            ) from error
        pid = int((self.settings.postgres_dir / "postmaster.pid").read_text().split()[0])
        self._process = psutil.Process(pid)
        record = ProcessRecord(
            self.name, pid, self._process.create_time(), url, str(postgres.postgres_log(self.settings))
        )
        write_record(self.settings.run_dir, record)

    def healthy(self) -> bool:
        try:
            return self._process is not None and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        postgres.stop_embedded(self.settings)
        (self.settings.run_dir / f"{self.name}.json").unlink(missing_ok=True)


class Migrations:
    """Brings both stores to the newest schema and the plans to the catalogue; nothing to keep running."""

    name = "migrations"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def start(self) -> None:
        try:
            postgres.migrate(self.settings)
            postgres.ensure_dagster_database(self.settings)
            engine = postgres.create_engine(self.settings, poolclass=sa.NullPool)
            with engine.begin() as connection:
                sync_plans(connection)
            client = clickhouse.connect(self.settings, query_origin="migrations")
            clickhouse.migrate(client)
            client.close()
        except (
            sa.exc.SQLAlchemyError,
            ClickHouseError,
            CommandError,
            postgres.PostgresNotRunning,
        ) as error:
            raise StackError(f"the stores could not be migrated: {error}") from error

    def healthy(self) -> bool:
        return True

    def stop(self) -> None: ...


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Environment in which Dagster (and the dbt that it starts) finds the stores."""
    target = urlsplit(clickhouse.clickhouse_url(settings))
    storage = sa.make_url(postgres.dagster_database_url(settings)).set(drivername="postgresql+psycopg2")
    return child_environment(
        settings,
        DAGSTER_HOME=str(settings.dagster_home),
        DAGSTER_DISABLE_TELEMETRY="yes",
        APEX_DAGSTER_DATABASE_URL=storage.render_as_string(hide_password=False),
        APEX_DBT_HOST=target.hostname or "127.0.0.1",
        APEX_DBT_PORT=str(target.port or (8443 if target.scheme == "https" else 8123)),
        APEX_DBT_USER=sa.make_url(clickhouse.clickhouse_url(settings)).username or "default",
        APEX_DBT_PASSWORD=sa.make_url(clickhouse.clickhouse_url(settings)).password or "",
        APEX_DBT_SECURE="true" if target.scheme == "https" else "false",
        DBT_SEND_ANONYMOUS_USAGE_STATS="false",
    )


def prepare_dagster_home(settings: Settings) -> None:
    """Put the project's dagster.yaml where Dagster looks for it."""
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PROJECT_ROOT / "dagster.yaml", settings.dagster_home / "dagster.yaml")


class _LateProcess:
    """A process whose environment is known only once the stores run (it carries their addresses)."""

    def __init__(self, name: str, build: Callable[[], Process]) -> None:
        self.name = name
        self._build = build
        self._process: Process | None = None

    def start(self) -> None:
        restarts = self._process.restarts + 1 if self._process else 0
        self._process = self._build()
        self._process.restarts = restarts
        self._process.start()

    def healthy(self) -> bool:
        return self._process is not None and self._process.healthy()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


def components(settings: Settings, parts: set[Part]) -> list[Component]:
    """Components of `parts`, in starting order. Stores that settings place elsewhere are not started here.

    Raises
    ------
    StackError
        If the data folder's path can't be used or its disk is nearly full.
    """
    clock_from_setting(settings.clock)  # a wrong one is told here, not by each process in turn
    check_home_path(settings)
    check_free_disk(settings)
    env = child_environment(settings)

    def python(name: str, module: str, *arguments: str, **options: Any) -> Process:
        command = [sys.executable, "-m", module, *arguments]
        return Process(name, command, env, settings.run_dir, settings.log_dir / f"{name}.log", **options)

    found: list[Component] = []
    if Part.STORES in parts:
        if settings.database_url is None:
            found.append(EmbeddedPostgres(settings))
        if settings.clickhouse_url is None:
            url = f"http://{settings.warehouse_host}:{settings.warehouse_port}"
            address = ("--host", settings.warehouse_host, "--port", str(settings.warehouse_port))
            found.append(
                python("warehouse", "apex_pipelines.platform.warehouse", *address,
                       ready=answers(f"{url}/ping"), url=url,
                       listens=(settings.warehouse_host, settings.warehouse_port, "APEX_WAREHOUSE_PORT"))
            )  # fmt: skip
        found.append(Migrations(settings))
    if Part.INGEST in parts:
        address = ("--host", settings.api_host, "--port", str(settings.api_port))
        found.append(
            python("api", "ingest_api", *address, "--workers", str(settings.api_workers),
                   ready=answers(f"{settings.api_url}/health"), url=settings.api_url,
                   listens=(settings.api_host, settings.api_port, "APEX_API_PORT"))
        )  # fmt: skip
        found.append(python("loader", "ingest_api.loader"))
    if Part.DAGSTER in parts:
        found += _dagster_components(settings)
    return found


def _dagster_components(settings: Settings) -> list[Component]:
    bin_dir = os.path.dirname(sys.executable)

    def webserver() -> Process:
        prepare_dagster_home(settings)
        return Process(
            "dagster-webserver",
            [os.path.join(bin_dir, "dagster-webserver"), "-w", str(PROJECT_ROOT / "workspace.yaml"),
             "-h", settings.dagster_host, "-p", str(settings.dagster_port)],
            dagster_environment(settings), settings.run_dir, settings.log_dir / "dagster-webserver.log",
            ready=answers(f"{settings.dagster_url}/server_info"), url=settings.dagster_url, ready_seconds=90,
            listens=(settings.dagster_host, settings.dagster_port, "APEX_DAGSTER_PORT"),
        )  # fmt: skip

    def daemon() -> Process:
        prepare_dagster_home(settings)
        return Process(
            "dagster-daemon",
            [os.path.join(bin_dir, "dagster-daemon"), "run", "-w", str(PROJECT_ROOT / "workspace.yaml")],
            dagster_environment(settings), settings.run_dir, settings.log_dir / "dagster-daemon.log",
        )  # fmt: skip

    return [_LateProcess("dagster-webserver", webserver), _LateProcess("dagster-daemon", daemon)]
