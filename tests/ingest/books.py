"""What is stored and what is counted after all the kills, in the terms in which clients sent it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.landing import waiting_files
from tests.ingest.insistent_clients import QUANTITY
from tests.warehouse_models.conftest import Models


def wait_until_landed(spool_dir: Path, seconds: float = 60) -> None:
    """Until the loader has nothing left to do."""
    deadline = time.monotonic() + seconds
    while waiting := waiting_files(spool_dir):
        assert time.monotonic() < deadline, f"not loaded in time: {waiting}"
        time.sleep(0.05)


def stored(warehouse: Client) -> Counter[str]:
    """How often each event id is in the table; fails when a (batch_id, batch_row) is there twice."""
    rows = warehouse.query("select event_id, batch_id, batch_row from raw.usage_events").result_rows
    repeated = [key for key, count in Counter((row[1], row[2]) for row in rows).items() if count > 1]
    assert repeated == []
    return Counter(row[0] for row in rows)


def assert_each_counts_once(models: Models, ids: set[str]) -> None:
    """Bring the marts up to date; they hold each of `ids` once and nothing else."""
    models.build("usage_daily")
    counted = models.client.query("select event_id from intermediate.int_usage_events").result_rows
    assert Counter(event_id for (event_id,) in counted) == Counter(ids)
    daily = models.client.query("select sum(event_count), sum(quantity) from marts.usage_daily").result_rows
    assert [tuple(row) for row in daily] == [(len(ids), QUANTITY * len(ids))]
