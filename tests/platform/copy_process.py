"""Copies `customers` again and again until it is killed: the process that tests of kills kill."""

from __future__ import annotations

from datetime import UTC, datetime

from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.table_copy import copy_table
from apex_pipelines.settings import Settings

if __name__ == "__main__":
    settings = Settings()
    engine = postgres.create_engine(settings)
    client = clickhouse.connect(settings, query_origin="tests")
    while True:
        copy_table(engine, client, "customers", datetime(2026, 6, 1, tzinfo=UTC))
        print("copied", flush=True)
