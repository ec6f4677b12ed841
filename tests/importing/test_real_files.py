"""Both real files through the real API, spool, loader and warehouse, held against an independent count."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.store import customer_id_for
from apex_pipelines.importing.engine import ImportReport, run_import
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings, child_environment
from ingest_api import loader
from tests.conftest import PROJECT_ROOT, SHARED_DATA, stop, wait_until_up

WEB_LOG = SHARED_DATA / "web_access" / "apache_logs"
CDNOW = SHARED_DATA / "cdnow" / "CDNOW_master.txt"
needs_data = pytest.mark.skipif(
    not SHARED_DATA.exists(),
    reason=f"the real files are not at {SHARED_DATA}; they are not part of the project",
)

# Customer, day, metric and quantity in storage units, in order.
Rows = list[tuple[str, date, str, int]]


@pytest.fixture
def running(settings: Settings, engine: sa.Engine, warehouse: Client, tmp_path: Path) -> Iterator[Settings]:
    """Settings under which the API and the loader run."""
    with (tmp_path / "api.log").open("wb") as out:
        api = subprocess.Popen(
            [sys.executable, "-m", "ingest_api"],
            env=child_environment(settings),
            stderr=out,
            cwd=PROJECT_ROOT,
        )
        done = threading.Event()
        loading = threading.Thread(target=loader.run, args=(settings, done))
        try:
            wait_until_up(f"{settings.api_url}/health", api)
            loading.start()
            yield settings
        finally:
            stop(api)
            done.set()
            if loading.ident is not None:
                loading.join(60)


def counted(warehouse: Client, distinct_events: int) -> Rows:
    """What the landing log holds, each event once, after waiting for that many different ones."""
    deadline = time.monotonic() + 60
    query = "select uniqExact(customer_id, event_id) from raw.usage_events"
    while (stored := int(warehouse.query(query).result_rows[0][0])) < distinct_events:
        assert time.monotonic() < deadline, f"{stored} of {distinct_events} events were loaded within 60 s"
        time.sleep(0.2)
    assert stored == distinct_events
    return [
        (str(customer), day, str(metric), int(quantity))
        for customer, day, metric, quantity in warehouse.query(
            """
            select customer_id, toDate(event_time) as day, metric_type, sum(quantity)
            from (
                select distinct customer_id, event_id, metric_type, event_time, quantity
                from raw.usage_events
            )
            group by all order by all
            """
        ).result_rows
    ]


def expected(frame: pl.DataFrame, source: str) -> Rows:
    sums = frame.group_by("ref", "day", "metric").agg(pl.col("quantity").sum())
    return sorted((customer_id_for(source, ref), day, metric, q) for ref, day, metric, q in sums.iter_rows())


def web_log_by_polars() -> pl.DataFrame:
    pattern = r'^(\S+) .*?\[([^\]]+)\] ".*?" (\d{3}) (\d+|-)(?: |$)'
    lines = pl.DataFrame({"line": WEB_LOG.read_text(encoding="latin-1").splitlines()})
    columns = lines.select(
        ref=pl.col("line").str.extract(pattern, 1),
        day=pl.col("line").str.extract(pattern, 2).str.slice(0, 11).str.to_date("%d/%b/%Y"),
        status=pl.col("line").str.extract(pattern, 3).cast(pl.Int64),
        size=pl.col("line").str.extract(pattern, 4),
    )
    assert columns.null_count().sum_horizontal().item() == 0
    who = ["ref", "day"]
    calls = columns.select(*who, metric=pl.lit("api_calls"), quantity=pl.lit(1, pl.Int64))
    moved = columns.filter(pl.col("size") != "-").select(
        *who, metric=pl.lit("data_transfer"), quantity=pl.col("size").cast(pl.Int64)
    )
    failed = columns.filter(pl.col("status") >= 400)
    errors = failed.select(*who, metric=pl.lit("sdk_errors"), quantity=pl.lit(1, pl.Int64))
    return pl.concat([calls, moved, errors])


def cdnow_by_polars() -> pl.DataFrame:
    lines = pl.DataFrame({"line": CDNOW.read_text().splitlines()[1:]})
    parts = lines.select(pl.col("line").str.extract_all(r"\S+").alias("part"))
    columns = parts.select(
        ref=pl.col("part").list.get(0),
        day=pl.col("part").list.get(1).str.to_date("%Y%m%d"),
        discs=pl.col("part").list.get(2).cast(pl.Int64),
        micros=pl.col("part").list.get(3).str.replace(".", "", literal=True).cast(pl.Int64) * 10_000,
    )
    who = ["ref", "day"]
    discs = columns.select(*who, metric=pl.lit("impressions"), quantity="discs")
    return pl.concat([discs, columns.select(*who, metric=pl.lit("mediated_revenue"), quantity="micros")])


def kill_half_way(settings: Settings, path: Path, warehouse: Client, events: int) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.importing.import_process",
            str(path),
            str(settings.api_port),
            "historical",
        ],
        env=child_environment(settings),
        cwd=PROJECT_ROOT,
    )
    deadline = time.monotonic() + 120
    loaded = 0
    while loaded < events // 10 and process.poll() is None and time.monotonic() < deadline:
        loaded = int(warehouse.query("select count() from raw.usage_events").result_rows[0][0])
        time.sleep(0.02)
    assert process.poll() is None, "the import ended before it could be killed"
    process.kill()
    process.wait(10)
    assert events // 10 <= loaded < events


def bring_in(settings: Settings, clock: ManualClock, path: Path) -> ImportReport:
    return run_import(settings, path, historical=True, clock=clock)


@needs_data
def test_the_web_log_killed_half_way_resumed_and_sent_twice(
    running: Settings, warehouse: Client, clock: ManualClock
) -> None:
    independent = expected(web_log_by_polars(), "import:web-log")
    kill_half_way(running, WEB_LOG, warehouse, 19_551)
    resumed = bring_in(running, clock, WEB_LOG)
    assert resumed.resumed
    assert (resumed.records, resumed.customers, resumed.rejected) == (10_000, 1_753, 0)
    assert counted(warehouse, resumed.events) == independent
    again = bring_in(running, clock, WEB_LOG)
    assert again.accepted + again.duplicates == again.events == resumed.events
    assert counted(warehouse, resumed.events) == independent


@needs_data
@pytest.mark.slow
def test_cdnow_killed_half_way_and_resumed(running: Settings, warehouse: Client, clock: ManualClock) -> None:
    independent = expected(cdnow_by_polars(), "import:cdnow")
    kill_half_way(running, CDNOW, warehouse, 139_318)
    report = bring_in(running, clock, CDNOW)
    assert report.resumed
    assert (report.records, report.customers, report.rejected) == (69_659, 23_570, 0)
    assert counted(warehouse, report.events) == independent
