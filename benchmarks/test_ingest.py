"""What the durable path costs: API, spool and loader against a handler that keeps nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.keys import issue_key
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.platform.ingest_client import ClientEvent, IngestClient
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import PROJECT_ROOT, free_port, stop, wait_until_up

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

EVENTS_PER_REQUEST = 100
REQUESTS = 1_500
CONNECTIONS = 16
AT = "2026-06-01T00:00:00Z"


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path, url: str | None) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=PROJECT_ROOT)
        try:
            if url is not None:
                wait_until_up(url, process)
            yield
        finally:
            stop(process)


async def send(url: str, key: str, prefix: str) -> float:
    """Seconds until all batches are answered."""
    async with IngestClient(url, concurrency=CONNECTIONS) as client:
        batches = [
            [
                ClientEvent(event_id=f"{prefix}-{r}-{n}", metric_type="impressions", quantity=1, timestamp=AT)
                for n in range(EVENTS_PER_REQUEST)
            ]
            for r in range(REQUESTS)
        ]
        began = time.perf_counter()
        await asyncio.gather(*(client.send(key, batch) for batch in batches))
        return time.perf_counter() - began


def test_durable_batches_against_a_handler_that_keeps_nothing(
    settings: Settings, engine: sa.Engine, warehouse: Client, clock: ManualClock, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        customer = create_customer(connection, NewCustomer("Bench", "bench@example.com"), clock.now())
        key = issue_key(connection, customer, clock.now()).plaintext
    # One key sends everything here: its limit is not what is measured.
    env = child_environment(settings, APEX_API_KEY_EVENTS_PER_SECOND="0")
    python = [sys.executable, "-m"]
    api = [*python, "ingest_api", "--port", str(settings.api_port), "--workers", "1"]
    idle_port = free_port()
    idle = [*python, "granian", "--interface", "rsgi", "--port", str(idle_port), "--log-level", "warning",
            "benchmarks.keeps_nothing:app"]  # fmt: skip
    rates: dict[str, list[float]] = {"durable": [], "landed": [], "keeps nothing": []}
    total = REQUESTS * EVENTS_PER_REQUEST
    with (
        running(api, env, tmp_path / "api.log", f"{settings.api_url}/health"),
        running([*python, "ingest_api.loader"], env, tmp_path / "loader.log", None),
        running(idle, env, tmp_path / "idle.log", f"http://127.0.0.1:{idle_port}/health"),
    ):
        for round_number in range(3):
            began = time.perf_counter()
            rates["durable"].append(total / asyncio.run(send(settings.api_url, key, f"d{round_number}")))
            wait_until_landed(settings.spool_dir, 120)
            rates["landed"].append(total / (time.perf_counter() - began))
            took = asyncio.run(send(f"http://127.0.0.1:{idle_port}", key, f"n{round_number}"))
            rates["keeps nothing"].append(total / took)
    stored = warehouse.query("select count(), uniqExact(event_id) from raw.usage_events").result_rows[0]
    assert tuple(stored) == (3 * total, 3 * total)
    medians = {name: sorted(found)[1] for name, found in rates.items()}
    print(f"\nbatches of {EVENTS_PER_REQUEST}, {CONNECTIONS} connections, events/s, median of 3:")
    for name, rate in medians.items():
        print(f"  {name:14} {rate:12,.0f}")
    print(f"  durable / keeps nothing  {medians['durable'] / medians['keeps nothing']:.2f}")
