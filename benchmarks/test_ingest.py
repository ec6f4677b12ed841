"""The durable path, with its loader at work, against what most would write first and against doing nothing.

All servers have one worker and share the machine with the process that sends. Rounds are interleaved, so that
a noisy neighbour hurts all alike; medians are printed beside the targets of the product.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.keys import issue_key
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings, child_environment
from benchmarks.load import Load, Result, run
from tests.conftest import PROJECT_ROOT, free_port, stop, wait_until_up

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

ROUNDS = 3
SECONDS = 6.0
CONNECTIONS = 64
EVENTS_PER_BATCH = 100
BATCH_CONNECTIONS = 8
AT = "2026-06-01T00:00:00Z"


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path, url: str | None = None) -> Iterator[None]:
    """A server process; returns when `url` answers."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=PROJECT_ROOT)
        try:
            if url is not None:
                wait_until_up(f"{url}/health", process)
            yield
        finally:
            stop(process)


class Servers:
    """The durable API with its loader, and what it is compared with, each on a port of its own."""

    def __init__(self, settings: Settings, engine: sa.Engine, logs: Path, running_now: ExitStack) -> None:
        self._settings = settings
        self._logs = logs
        self._running_now = running_now
        # One key sends everything here: its limit and that of readers are counted, and never reached.
        self._env = child_environment(
            settings, APEX_API_KEY_EVENTS_PER_SECOND="1e9", APEX_API_KEY_BURST_EVENTS="1e9",
            APEX_API_READS_PER_WINDOW="1000000",
            BENCH_DATABASE_URL=engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        )  # fmt: skip
        self.durable = settings.api_url
        self._start("ingest_api", ["--port", str(settings.api_port), "--workers", "1"], self.durable)
        self._start("ingest_api.loader", [])

    def _start(self, module: str, arguments: list[str], url: str | None = None) -> None:
        command = [sys.executable, "-m", module, *arguments]
        log = self._logs / f"{module}{arguments[0] if arguments else ''}.log".replace(":", "-")
        self._running_now.enter_context(running(command, self._env, log, url))

    def does_nothing(self) -> str:
        """A constant answer, on the server that we use."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._start("benchmarks.does_nothing", ["--port", str(port)], url)
        return url

    def fastapi(self, name: str) -> str:
        """One of `fastapi_handlers`."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        arguments = [f"benchmarks.fastapi_handlers:{name}", "--port", str(port)]
        self._start("uvicorn", [*arguments, "--log-level", "warning", "--no-access-log"], url)
        return url


@pytest.fixture
def account(engine: sa.Engine, clock: ManualClock) -> tuple[str, str]:
    """A customer's id and the plaintext of its key."""
    with engine.begin() as connection:
        customer = create_customer(connection, NewCustomer("Bench", "bench@example.com"), clock.now())
        sync_plans(connection)
        plan = NewSubscription(customer, "studio", datetime(2026, 5, 15, tzinfo=UTC))
        subscribe(connection, plan, clock.now())
        return customer, issue_key(connection, customer, clock.now()).plaintext


@pytest.fixture
def servers(settings: Settings, engine: sa.Engine, warehouse: Client, tmp_path: Path) -> Iterator[Servers]:
    with ExitStack() as running_now:
        yield Servers(settings, engine, tmp_path, running_now)


def rows_stored(warehouse: Client) -> tuple[int, int]:
    """Rows of raw events, and different event ids among them."""
    rows, ids = warehouse.query("select count(), uniqExact(event_id) from raw.usage_events").result_rows[0]
    return rows, ids


def median_rate(results: list[Result]) -> float:
    return statistics.median(result.requests_per_second for result in results)


def verdict(value: float, target: float, *, below: bool = False) -> str:
    met = value < target if below else value >= target
    return f"target {'<' if below else '>='} {target:g}: {'met' if met else 'MISSED'}"


def test_single_events_against_fastapi_and_against_doing_nothing(
    servers: Servers, account: tuple[str, str], settings: Settings, warehouse: Client
) -> None:
    _, key = account
    contenders = {
        "durable": servers.durable,
        "does nothing (same server)": servers.does_nothing(),
        "FastAPI, keeps nothing": servers.fastapi("keeps_nothing"),
        "FastAPI, one insert each": servers.fastapi("inserts"),
    }
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(ROUNDS):
        for name, url in order:
            results[name].append(
                run(Load(url, key, f"s{number}", AT, seconds=SECONDS, connections=CONNECTIONS))
            )
            wait_until_landed(settings.spool_dir, 120)  # or it would be loaded at the next one's expense
        order.append(order.pop(0))
    acknowledged = sum(result.events for result in results["durable"])
    assert rows_stored(warehouse) == (acknowledged, acknowledged)
    rates = {name: median_rate(found) for name, found in results.items()}
    durable = rates["durable"]
    print(f"\none event a request, {CONNECTIONS} connections, requests/s, median of {ROUNDS}:")
    for name, rate in rates.items():
        p99 = statistics.median(result.p99_ms for result in results[name])
        print(f"  {name:28} {rate:10,.0f}   p99 {p99:6.1f} ms   durable / it {durable / rate:5.2f}")
    print(f"  3 x FastAPI that keeps nothing: {verdict(durable / rates['FastAPI, keeps nothing'], 3)}")
    print(f"  10 x FastAPI with an insert:    {verdict(durable / rates['FastAPI, one insert each'], 10)}")
    print(f"  half of doing nothing (aim):    {verdict(durable / rates['does nothing (same server)'], 0.5)}")


def test_batches_until_they_have_landed(
    servers: Servers, account: tuple[str, str], settings: Settings, warehouse: Client
) -> None:
    _, key = account
    idle = servers.does_nothing()
    rates: dict[str, list[float]] = {"acknowledged": [], "landed": [], "does nothing (same server)": []}
    acknowledged = 0
    for number in range(ROUNDS):
        load = Load(
            servers.durable, key, f"b{number}", AT, SECONDS, BATCH_CONNECTIONS, batch=EVENTS_PER_BATCH
        )
        began = time.perf_counter()
        result = run(load)
        wait_until_landed(settings.spool_dir, 120)
        # From outside: with the start of the client, until the spool is empty.
        took = time.perf_counter() - began
        acknowledged += result.events
        rates["acknowledged"].append(result.events_per_second)
        rates["landed"].append(result.events / took)
        nothing = run(Load(idle, key, f"n{number}", AT, SECONDS, BATCH_CONNECTIONS, batch=EVENTS_PER_BATCH))
        rates["does nothing (same server)"].append(nothing.events_per_second)
    assert rows_stored(warehouse) == (acknowledged, acknowledged)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"\nbatches of {EVENTS_PER_BATCH}, {BATCH_CONNECTIONS} connections, events/s, median of {ROUNDS}:")
    for name, rate in medians.items():
        print(f"  {name:28} {rate:10,.0f}")
    print(f"  landed: {verdict(medians['landed'], 100_000)}")
    ratio = medians["acknowledged"] / medians["does nothing (same server)"]
    print(f"  acknowledged / does nothing: {ratio:.2f}, {verdict(ratio, 0.5)}")


def test_latency_and_freshness_at_a_thousand_requests_a_second(
    servers: Servers, account: tuple[str, str], settings: Settings, warehouse: Client, clock: ManualClock
) -> None:
    customer, key = account
    token = issue_token(token_secret(settings), customer, clock.now(), timedelta(hours=1))
    alone = run(Load(servers.durable, key, "alone", AT, seconds=15, connections=128, rate=1_000))
    with ThreadPoolExecutor(max_workers=1) as threads:
        beside = threads.submit(
            run, Load(servers.durable, key, "beside", AT, seconds=40, connections=128, rate=1_000)
        )
        time.sleep(3)
        delays = freshness(servers.durable, key, token, beside)
        loaded = beside.result()
    wait_until_landed(settings.spool_dir, 120)
    sent = alone.events + loaded.events + len(delays)
    assert rows_stored(warehouse) == (sent, sent)
    p95 = sorted(delays)[int(len(delays) * 0.95)]
    print("\n1,000 single events a second, each timed from when it was due:")
    print(f"  p50 {alone.p50_ms:.1f} ms, p99 {alone.p99_ms:.1f} ms, longest {alone.max_ms:.0f} ms")
    print(f"  p99: {verdict(alone.p99_ms, 50, below=True)} ms")
    print(f"  with a customer who asks for its use all the time: p99 {loaded.p99_ms:.1f} ms")
    print(f"from acknowledged to seen in /api/usage/current, {len(delays)} events beside that load:")
    print(f"  p50 {statistics.median(delays):.2f} s, p95 {p95:.2f} s, longest {max(delays):.2f} s")
    print(f"  p95: {verdict(p95, 2, below=True)} s")


def freshness(url: str, key: str, token: str, load: Future[Result]) -> list[float]:
    """Seconds from the acknowledgement of an event until its customer sees it; one after the other."""
    pick = random.Random(7)
    delays = []
    with httpx.Client(base_url=url, timeout=10) as http:
        while not load.done():
            event = {"metric_type": "api_calls", "quantity": 1, "timestamp": AT}
            sent = http.post("/api/usage/track", json=event, headers={"authorization": f"Bearer {key}"})
            assert sent.status_code == 200, sent.text
            acknowledged = time.perf_counter()
            while api_calls(http, token) <= len(delays):
                assert time.perf_counter() - acknowledged < 30, "not seen within 30 s"
                time.sleep(0.02)
            delays.append(time.perf_counter() - acknowledged)
            time.sleep(pick.uniform(0, 0.3))
    return delays


def api_calls(http: httpx.Client, token: str) -> int:
    answer = http.get("/api/usage/current", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["api_calls"])
