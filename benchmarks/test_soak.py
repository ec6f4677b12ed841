"""Ten minutes under load with all processes: what they hold must not grow.

Not part of `make bench`: ``pytest benchmarks/test_soak.py -m "bench and slow" -s``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.settings import Settings
from benchmarks.load import Load, Result, run
from tests.ingest.conftest import Account, Api, LoaderProcess, Warehouse

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(1_000)]

SECONDS = 600.0
SAMPLE_SECONDS = 5.0
SINGLES_PER_SECOND = 500
BATCHES_PER_SECOND = 50
MIB = 1 << 20
# What each may hold more of in the last third than in the one before; the first warms caches up.
ALLOWED_GROWTH = 0.05
ALLOWED_PARTS = 300
AT = "2026-06-01T00:00:00Z"
_PARTS = """
select max(parts)
from (select count() as parts from system.parts where active and database = 'raw' group by table, partition)
"""


def test_ten_minutes_under_load_leave_memory_and_parts_as_they_were(
    new_warehouse: Callable[[], Warehouse],
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    settings: Settings,
    account: Account,
) -> None:
    front = new_warehouse()
    api = new_api(workers=2, APEX_API_KEY_EVENTS_PER_SECOND="0")
    loader = new_loader()
    warehouse = front.connect()
    assert front.process is not None
    assert loader.process is not None
    pids = {"warehouse": [front.process.pid], "loader": [loader.process.pid], "API": api.worker_pids()}
    held: dict[str, list[int]] = {name: [] for name in pids}
    parts: list[int] = []
    with ThreadPoolExecutor(max_workers=2) as threads:
        singles = Load(api.url, account.key, "single", AT, SECONDS, 64, rate=SINGLES_PER_SECOND)
        batches = Load(api.url, account.key, "batch", AT, SECONDS, 16, batch=100, rate=BATCHES_PER_SECOND)
        under_way = [threads.submit(run, load) for load in (singles, batches)]
        while not all(load.done() for load in under_way):
            time.sleep(SAMPLE_SECONDS)
            for name, processes in pids.items():
                held[name].append(sum(int(psutil.Process(pid).memory_info().rss) for pid in processes))
            parts.append(int(warehouse.command(_PARTS)))
        results = [load.result() for load in under_way]
    wait_until_landed(settings.spool_dir, 60)
    _tell(results, held, parts)
    sent = sum(result.events for result in results)
    assert _stored(warehouse) == (sent, sent)
    assert api.worker_pids() == pids["API"]
    assert max(parts) < ALLOWED_PARTS
    for name, samples in held.items():
        before, last = _thirds(samples)[1:]
        assert last < before * (1 + ALLOWED_GROWTH), (name, before, last)


def _thirds(samples: list[int]) -> list[float]:
    third = len(samples) // 3
    return [statistics.median(samples[start : start + third]) for start in (0, third, 2 * third)]


def _stored(warehouse: Client) -> tuple[int, int]:
    rows, ids = warehouse.query("select count(), uniqExact(event_id) from raw.usage_events").result_rows[0]
    return rows, ids


def _tell(results: list[Result], held: dict[str, list[int]], parts: list[int]) -> None:
    single, batch = results
    print(f"\n{SECONDS:g} s of {SINGLES_PER_SECOND} single events and {BATCHES_PER_SECOND} batches a second:")
    print(f"  p99 of single events {single.p99_ms:.1f} ms, of batches {batch.p99_ms:.1f} ms")
    print("  resident memory in MiB, median of each third, and most:")
    for name, samples in held.items():
        thirds = "  ".join(f"{value / MIB:7.1f}" for value in _thirds(samples))
        print(f"    {name:10} {thirds}   {max(samples) / MIB:7.1f}")
    print(f"  most parts in a partition: {max(parts)}, at the end {parts[-1]}")
