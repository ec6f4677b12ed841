"""SIGKILL at any moment: what was acknowledged is stored, what is stored was sent, nothing stands twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.landing import waiting_files
from apex_pipelines.platform import clickhouse
from apex_pipelines.settings import Settings, child_environment
from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame
from ingest_api.spool.segments import SEALED, new_segment_name
from tests.conftest import free_port, stop, wait_until_up
from tests.ingest.conftest import Account, Api, LoaderProcess, event
from tests.ingest.test_loader import accepted

# The short form runs with all tests, the long one by `make test-faults`.
LONG = pytest.param(40, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])
KILLS = [5, LONG]


@dataclass
class Load:
    """Clients that send events as SDKs do: each again, with the same id, until it is acknowledged.

    Attributes
    ----------
    padding : int
        Characters of metadata of each event.
    refusals : int
        Requests that were answered with 503.
    """

    url: str
    account: Account
    padding: int = 0
    refusals: int = 0
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    duplicates: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def _client(self, name: str, batch_size: int) -> None:
        number = 0
        with httpx.Client(base_url=self.url, headers=self.account.bearer, timeout=5) as http:
            while not self._stop.is_set():
                ids = [f"{name}-{number + index}" for index in range(batch_size)]
                number += batch_size
                self.sent.update(ids)
                while not self._send(http, ids) and not self._stop.is_set():
                    time.sleep(0.05)
                time.sleep(0.005)

    def _send(self, http: httpx.Client, ids: list[str]) -> bool:
        metadata = {f"pad{part}": "x" * 1_000 for part in range(self.padding // 1_000)}
        events = [event(event_id=name, metadata=metadata) for name in ids]
        try:
            if len(ids) == 1:
                answer = http.post("/api/usage/track", json=events[0])
            else:
                answer = http.post("/api/usage/batch", json=events)
        except httpx.TransportError:
            return False
        if answer.status_code == 503:
            self.refusals += 1
            return False
        assert answer.status_code == 200, answer.text
        if len(ids) > 1:
            body = answer.json()
            assert body["rejected"] == 0
            self.duplicates += body["duplicates"]
        self.acknowledged.update(ids)
        return True

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        shapes = [1, 1, 1, 25]
        threads = [
            threading.Thread(target=self._client, args=(f"client{number}", size))
            for number, size in enumerate(shapes)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(20)


def wait_until_landed(spool_dir: Path, seconds: float = 60) -> None:
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


@pytest.mark.parametrize("kills", KILLS)
def test_killing_the_api_loses_no_acknowledged_event(
    kills: int,
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    pick = random.Random(1)
    api = new_api(workers=2)
    new_loader()
    load = Load(api.url, account)
    with load.running():
        for _ in range(kills):
            time.sleep(pick.uniform(0.2, 1.5))
            api.kill()
            api.start()
        time.sleep(0.5)
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(warehouse)
    assert len(load.acknowledged) > 100
    assert load.acknowledged <= set(counts)
    assert set(counts) <= load.sent


def test_a_killed_worker_is_replaced_and_an_orphaned_one_ends(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    api = new_api(workers=2)
    load = Load(api.url, account)
    with load.running():
        for _ in range(2):
            time.sleep(0.5)
            subprocess.run(["kill", "-KILL", str(api.worker_pids()[0])], check=True)
        time.sleep(1)
        assert len(api.worker_pids()) == 2
        # Only the parent dies: its workers must let go of the port, or nothing could be started again.
        assert api.process is not None
        api.process.kill()
        api.process.wait(10)
        api.start()
        time.sleep(0.5)
    api.stop()
    new_loader()
    wait_until_landed(settings.spool_dir)
    counts = stored(warehouse)
    assert load.acknowledged <= set(counts) <= load.sent


@pytest.mark.parametrize("kills", KILLS)
def test_killing_the_loader_stores_every_acknowledged_event_exactly_once(
    kills: int,
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    pick = random.Random(2)
    # Small segments and a quick poll: more moments at which a kill hurts.
    api = new_api(APEX_SPOOL_SEGMENT_MAX_AGE_MS="50")
    loader = new_loader(APEX_LOADER_POLL_MS="10", APEX_LOADER_MAX_ROWS_PER_INSERT="50")
    load = Load(api.url, account)
    with load.running():
        for _ in range(kills):
            before = len(waiting_files(settings.spool_dir))
            deadline = time.monotonic() + 20
            # Let it get to work first: a kill while it starts up proves nothing.
            while len(waiting_files(settings.spool_dir)) >= before > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(pick.uniform(0.0, 1.0))
            loader.kill()
            loader.start()
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(warehouse)
    assert len(load.acknowledged) > 100
    assert counts == Counter(load.acknowledged)
    assert load.duplicates == 0


@pytest.fixture
def own_warehouse(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a warehouse that the test may kill; `settings` points at it."""
    home = Settings(home=tmp_path / "warehouse", warehouse_port=free_port())
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "warehouse.log").open("ab") as out:
            port = str(home.warehouse_port)
            process = subprocess.Popen(
                [sys.executable, "-m", "apex_pipelines.platform.warehouse", "--port", port],
                env=child_environment(home), stdout=out, stderr=out,
            )  # fmt: skip
        started.append(process)
        wait_until_up(f"http://127.0.0.1:{port}/ping", process)
        return process

    settings.clickhouse_url = clickhouse.clickhouse_url(home)
    yield start
    for process in started:
        stop(process)


@pytest.mark.parametrize("kills", [2, LONG])
def test_killing_warehouse_and_loader_in_turn_stores_every_event_exactly_once(
    kills: int,
    own_warehouse: Callable[[], subprocess.Popen[bytes]],
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    pick = random.Random(3)
    front = own_warehouse()
    client = clickhouse.connect(settings, query_origin="tests")
    clickhouse.migrate(client)
    client.close()
    api = new_api(APEX_SPOOL_SEGMENT_MAX_AGE_MS="50")
    loader = new_loader(APEX_LOADER_POLL_MS="10")
    load = Load(api.url, account)
    with load.running():
        for _ in range(kills):
            time.sleep(pick.uniform(0.5, 2.0))
            front.kill()
            front.wait(10)
            if pick.random() < 0.5:
                loader.kill()
                loader.start()
            front = own_warehouse()
    api.stop()
    wait_until_landed(settings.spool_dir)
    client = clickhouse.connect(settings, query_origin="tests")
    assert stored(client) == Counter(load.acknowledged)
    client.close()


@pytest.mark.parametrize("kills", [3, LONG])
def test_killing_loader_and_warehouse_over_a_backlog_of_tiny_segments_stores_each_row_once(
    kills: int,
    own_warehouse: Callable[[], subprocess.Popen[bytes]],
    new_loader: Callable[..., LoaderProcess],
    settings: Settings,
    engine: sa.Engine,
) -> None:
    """Many segments share an insert, so that a kill leaves many of them in doubt at once."""
    pick = random.Random(4)
    front = own_warehouse()
    client = clickhouse.connect(settings, query_origin="tests")
    clickhouse.migrate(client)
    client.close()
    settings.spool_dir.mkdir(parents=True)
    sent: set[str] = set()
    loader = new_loader(APEX_LOADER_POLL_MS="10", APEX_LOADER_MAX_ROWS_PER_INSERT="1500")
    for turn in range(kills):
        for number in range(800):
            ids = [f"{turn}-{number}-{row}" for row in range(4)]
            sent.update(ids)
            write_segment(settings.spool_dir, ids)
        time.sleep(pick.uniform(0.2, 1.5))
        loader.kill()
        if turn % 2:
            front.kill()
            front.wait(10)
            front = own_warehouse()
        loader.start()
    wait_until_landed(settings.spool_dir)
    client = clickhouse.connect(settings, query_origin="tests")
    assert stored(client) == Counter(sent)
    client.close()


def write_segment(folder: Path, ids: list[str]) -> None:
    """A sealed segment, as if a worker had written it; not synced, since no power is cut here."""
    payload = msgspec.msgpack.encode([accepted(name) for name in ids])
    data = FILE_HEADER + encode_frame(payload, 0, len(ids)) + encode_footer(len(ids))
    path = folder / f"{new_segment_name('w0')}.new"
    path.write_bytes(data)
    path.rename(path.with_suffix(SEALED))
