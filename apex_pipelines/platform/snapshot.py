"""Copies operational tables from PostgreSQL into ClickHouse's `raw` database.

Belongs here: one way to copy a table whole and swap it in. Does not belong here: which tables are copied
(`defs/customers/assets.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT

CHUNK_ROWS = 50_000


def copy_table(engine: sa.Engine, client: Client, table: str, snapshot_at: datetime) -> int:
    """Replace `raw.<table>` by the operational table's present rows; returns how many there are.

    Rows go to a twin table, in chunks, under one repeatable-read transaction; then the two are exchanged. A
    reader sees the old copy or the new one, and a kill in between leaves the old one in place.

    Raises
    ------
    RuntimeError
        If the twin holds another number of rows than were read, so that a lossy copy is never swapped in.
    """
    columns = [
        name
        for (name,) in client.query(
            "select name from system.columns where database = 'raw' and table = {table:String} "
            "order by position",
            parameters={"table": table},
        ).result_rows
        if name not in ("snapshot_at", "copy_number", "is_deleted")
    ]
    twin = f"raw.{table}__incoming"
    client.command(f"drop table if exists {twin} sync")
    client.command(f"create table {twin} as raw.{table}")
    select: sa.Select[Any] = sa.select(sa.text(", ".join(columns))).select_from(sa.table(table))
    copied = 0
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", stream_results=True, yield_per=CHUNK_ROWS
    ) as connection:
        for chunk in connection.execute(select).partitions(CHUNK_ROWS):
            rows = [(*row, snapshot_at) for row in chunk]
            client.insert(twin, rows, column_names=[*columns, "snapshot_at"], settings=DURABLE_INSERT)
            copied += len(rows)
    stored = client.query(f"select count() from {twin}").result_rows[0][0]  # noqa: S608 - name built above
    if stored != copied:
        raise RuntimeError(f"copy of {table}: {copied} rows read, {stored} stored; the old copy stays")
    client.command(f"exchange tables {twin} and raw.{table}")
    client.command(f"drop table {twin} sync")
    return copied
