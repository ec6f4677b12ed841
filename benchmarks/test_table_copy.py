"""What a copy of an operational table costs, against the size of the change and of the table."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.table_copy import TableCopy, copy_table

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

CHANGES, SMALL, LARGE = 100, 1_000, 200_000
INSERT = sa.text(
    "insert into customers (id, name, email, source, created_at) "
    "select 'c' || n, 'n', 'e', 's', now() from generate_series(cast(:first as int), cast(:last as int)) n"
)
UPDATE = sa.text(
    f"update customers set name = name || '.' where id in (select 'c' || generate_series(1, {CHANGES}))"
)


def test_a_hundred_changes_cost_little_more_in_a_large_table(engine: sa.Engine, warehouse: Client) -> None:
    def copied() -> TableCopy:
        return copy_table(engine, warehouse, "customers", datetime(2026, 6, 1, tzinfo=UTC))

    def fill(first: int, last: int) -> float:
        with engine.begin() as connection:
            connection.execute(INSERT, {"first": first, "last": last})
        began = time.perf_counter()
        assert copied().copied == last - first + 1
        return time.perf_counter() - began

    def change() -> float:
        taken = []
        for _ in range(9):
            with engine.begin() as connection:
                connection.execute(UPDATE)
            began = time.perf_counter()
            assert copied().copied == CHANGES
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    fill(1, SMALL)
    small = change()
    all_of_them = fill(SMALL + 1, LARGE)
    large = change()
    print(
        f"\n{CHANGES} changes: {small * 1000:.0f} ms in {SMALL:,} rows, {large * 1000:.0f} ms in {LARGE:,} "
        f"({large / small:.1f}x); {LARGE - SMALL:,} new rows: {all_of_them:.1f} s"
    )
    # What grows is the count on both sides.
    assert large < 4 * small
