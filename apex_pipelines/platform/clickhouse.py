"""Clients and migrations for ClickHouse, the store of everything that is counted.

Belongs here: how to connect, with which settings, and the runner for raw-table migrations.
Does not belong here: any query about the business (dbt and the domains have those).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.kept_secret import kept_secret
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import PROJECT_ROOT, Settings

log = get_logger(__name__)
MIGRATIONS = PROJECT_ROOT / "migrations" / "clickhouse"

# Said on each insert, because the opposite became the default in 26.2. fsync is a setting of tables:
# those of telemetry (`raw.usage*`), which no other source could restore, and of Stripe's objects, which are
# not asked for twice, state it themselves; the embedded warehouse has it as the default of all.
DURABLE_INSERT = {"async_insert": 0}


def warehouse_password(settings: Settings) -> str:
    """Password of ClickHouse's user `default`: the setting, else a random one kept in the data folder."""
    if settings.clickhouse_password is not None:
        return settings.clickhouse_password
    return kept_secret(settings.home_path / "warehouse.password")


def reader_password(settings: Settings) -> str:
    """Password of the embedded warehouse's read-only user `reader`, found like the operator's."""
    if settings.clickhouse_reader_password is not None:
        return settings.clickhouse_reader_password
    return kept_secret(settings.home_path / "warehouse.reader.password")


def clickhouse_url(settings: Settings) -> str:
    """URL with credentials, of the configured server or of the embedded warehouse."""
    if settings.clickhouse_url:
        return settings.clickhouse_url
    password = quote(warehouse_password(settings), safe="")
    return f"http://default:{password}@{settings.warehouse_host}:{settings.warehouse_port}"


def connect(settings: Settings, *, query_origin: str, timeout_seconds: int = 300) -> Client:
    """A clickhouse-connect client.

    Parameters
    ----------
    query_origin : str
        Who asks; sent as `log_comment`, so that the query log tells which part of the platform ran what.

    Raises
    ------
    clickhouse_connect.driver.exceptions.OperationalError
        If nothing answers at the URL.
    """
    parts = urlsplit(clickhouse_url(settings))
    return clickhouse_connect.get_client(
        host=parts.hostname,
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        secure=parts.scheme == "https",
        username=unquote(parts.username or "default"),
        password=unquote(parts.password or ""),
        send_receive_timeout=timeout_seconds,
        autogenerate_session_id=False,
        settings={"log_comment": query_origin},
    )


def row_counts(client: Client, tables: Iterable[str]) -> dict[str, int]:
    """Rows of each of these tables, in one query that reads next to nothing.

    A table's own bookkeeping (`system.tables`) would still count rows that a lightweight delete has hidden.
    """
    names = list(tables)
    if not names:
        return {}
    counts = " union all ".join(f"select {i}, count() from {name}" for i, name in enumerate(names))  # noqa: S608
    return {names[i]: int(count) for i, count in client.query(counts).result_rows}


def migrate(client: Client, folder: Path = MIGRATIONS) -> list[str]:
    """Apply the `.sql` files of `folder` that this server has not seen, in name order; safe to repeat.

    Statements are separated by a `;` that ends a line. Each file is recorded after its last statement, and
    each statement is written to be repeatable, so that a kill between two of them is healed by the next call.

    Returns
    -------
    list of str
        Names of the files applied by this call.
    """
    client.command("create database if not exists raw")
    client.command(
        "create table if not exists raw.schema_migrations (name String, applied_at DateTime64(3, 'UTC') "
        "default now64(3)) engine = MergeTree order by name"
    )
    seen = {row[0] for row in client.query("select name from raw.schema_migrations").result_rows}
    applied = []
    for path in sorted(folder.glob("*.sql")):
        if path.name in seen:
            continue
        for statement in path.read_text().split(";\n"):
            if statement.strip():
                client.command(statement)
        client.insert("raw.schema_migrations", [[path.name]], column_names=["name"], settings=DURABLE_INSERT)
        applied.append(path.name)
        log.info("clickhouse migration applied", name=path.name)
    return applied
