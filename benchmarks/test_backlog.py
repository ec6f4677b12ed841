"""How long a backlog of tiny segments takes to drain, as after an outage of ClickHouse at low traffic."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.settings import Settings, child_environment
from tests.conftest import stop
from tests.ingest.spool_files import write_segment

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

SEGMENTS = 5_000
EVENTS = 10


def test_draining_thousands_of_tiny_segments(settings: Settings, warehouse: Client, tmp_path: Path) -> None:
    settings.spool_dir.mkdir(parents=True)
    for number in range(SEGMENTS):
        write_segment(settings.spool_dir, [f"{number}-{row}" for row in range(EVENTS)])
    os.sync()
    with (tmp_path / "loader.log").open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest_api.loader"],
            env=child_environment(settings),
            stdout=out,
            stderr=out,
        )
        while any(name.endswith(".seg") for name in os.listdir(settings.spool_dir)):
            time.sleep(0.02)
        took = time.perf_counter() - began
        stop(process)
    rows, inserts = warehouse.query("select count(), uniqExact(loaded_at) from raw.usage_events").result_rows[
        0
    ]
    assert rows == SEGMENTS * EVENTS
    print(f"\n{SEGMENTS:,} segments of {EVENTS} events: {took:.1f} s with the start, {inserts} inserts")
