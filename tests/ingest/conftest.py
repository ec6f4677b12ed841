"""Real processes of the ingest API and of the loader, and customers with keys to use them."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.keys import issue_key
from apex_pipelines.customers.models import Customer, KeyScope
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port, stop, wait_until_up
from tests.warehouse_models.conftest import Models

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)  # where the settings of these tests let time stand
STARTED = datetime(2026, 4, 15, 13, 45, 10, tzinfo=UTC)  # cuts the first and the last day of each period


@dataclass
class Api:
    """The API as a process group of its own."""

    settings: Settings
    log: Path
    environment: dict[str, str]
    workers: int = 1
    process: subprocess.Popen[bytes] | None = None
    preexec: Callable[[], None] | None = None
    launcher: tuple[str, ...] = ("ingest_api",)

    @property
    def url(self) -> str:
        return self.settings.api_url

    def command(self) -> list[str]:
        port = str(self.settings.api_port)
        return [sys.executable, "-m", *self.launcher, "--port", port, "--workers", str(self.workers)]

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(), env=self.environment, stdout=out, stderr=out, preexec_fn=self.preexec
            )
        # Orphans of a killed server may still answer for a moment; until then this one has no worker.
        deadline = time.monotonic() + 20
        while not self.worker_pids():
            assert self.process.poll() is None, f"the API ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "the API started no worker in time"
            time.sleep(0.01)
        wait_until_up(f"{self.url}/health", self.process)

    def worker_pids(self) -> list[int]:
        assert self.process is not None
        try:
            return [child.pid for child in psutil.Process(self.process.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def resident(self) -> int:
        """Bytes of memory that the server and its workers hold."""
        assert self.process is not None
        pids = [self.process.pid, *self.worker_pids()]
        return sum(int(psutil.Process(pid).memory_info().rss) for pid in pids)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A bare connection."""
        wire = socket.socket()
        if receive_buffer is not None:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        wire.settimeout(20)
        wire.connect((self.settings.api_host, self.settings.api_port))
        return wire

    def kill(self) -> None:
        """SIGKILL the server and its workers at once, as a crash of the machine would."""
        assert self.process is not None
        # Stopped first: it must not start a worker in place of a killed one before it dies itself.
        self.process.send_signal(signal.SIGSTOP)
        workers = [psutil.Process(pid) for pid in self.worker_pids()]
        for victim in [*workers, self.process]:
            victim.kill()
        self.process.wait(10)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None


@dataclass
class LoaderProcess:
    """The loader as a process."""

    log: Path
    environment: dict[str, str]
    launcher: tuple[str, ...] = ("ingest_api.loader",)
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.launcher], env=self.environment, stdout=out, stderr=out
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        assert self.process.wait(10) == -signal.SIGKILL, "it had ended by itself"

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None


@dataclass
class Warehouse:
    """An embedded warehouse that a test may kill."""

    settings: Settings
    log: Path
    launcher: tuple[str, ...] = ("apex_pipelines.platform.warehouse",)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = str(self.settings.warehouse_port)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.launcher, "--port", port],
                env=child_environment(self.settings), stdout=out, stderr=out,
            )  # fmt: skip
        wait_until_up(f"http://127.0.0.1:{port}/ping", self.process)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        assert self.process.wait(10) == -signal.SIGKILL, "it had ended by itself"

    def connect(self) -> Client:
        return clickhouse.connect(self.settings, query_origin="tests")


@dataclass(frozen=True)
class Account:
    """A customer and the plaintext of its key."""

    customer_id: str
    key: str
    key_id: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


class Neighbour:
    """A client that behaves, at work in the background while others don't: an event each 20 ms.

    Attributes
    ----------
    acknowledged : list of str
        Ids of events that were answered with 200.
    trouble : list of str
        Everything else that it heard.
    slowest : float
        Seconds of the longest request.
    """

    def __init__(self, api: Api, account: Account) -> None:
        self.acknowledged: list[str] = []
        self.trouble: list[str] = []
        self.slowest = 0.0
        self._api = api
        self._account = account
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)

    def assert_unharmed(self, seconds: float = 5.0) -> None:
        """It was served all the time, and never waited longer than `seconds`."""
        assert self.trouble == []
        assert len(self.acknowledged) > 5
        assert self.slowest < seconds

    def _work(self) -> None:
        # A connection for each request, because those that are there already are the last to suffer.
        limits = httpx.Limits(max_keepalive_connections=0)
        headers = self._account.bearer
        with httpx.Client(base_url=self._api.url, limits=limits, headers=headers, timeout=30) as http:
            for number in itertools.count():
                if self._stop.wait(0.02):
                    return
                begun = time.monotonic()
                self._send(http, f"neighbour-{number}")
                self.slowest = max(self.slowest, time.monotonic() - begun)

    def _send(self, http: httpx.Client, name: str) -> None:
        try:
            answer = http.post("/api/usage/track", json=event(event_id=name))
        except httpx.TransportError as error:
            self.trouble.append(repr(error))
            return
        if answer.status_code == 200:
            self.acknowledged.append(name)
        else:
            self.trouble.append(f"{answer.status_code} {answer.text}")


@pytest.fixture
def neighbour_of(new_account: Callable[..., Account]) -> Callable[[Api], Neighbour]:
    """``with neighbour_of(api) as neighbour:``"""
    return lambda api: Neighbour(api, new_account("neighbour"))


@pytest.fixture
def new_account(engine: sa.Engine) -> Callable[..., Account]:
    """Makes customers: ``new_account("a", scopes=..., expires_at=...)``."""

    def make(
        name: str, *, scopes: tuple[KeyScope, ...] = (KeyScope.INGEST,), expires_at: datetime | None = None
    ) -> Account:
        customer_id = f"cus_{name.encode().hex():0<32}"
        with engine.begin() as connection:
            connection.execute(
                sa.insert(Customer).values(
                    id=customer_id,
                    name=name,
                    email=f"{name}@example.com",
                    source="signup",
                    created_at=CREATED,
                )
            )
            key = issue_key(connection, customer_id, CREATED, scopes=scopes, expires_at=expires_at)
        return Account(customer_id, key.plaintext, key.id)

    return make


@pytest.fixture
def account(new_account: Callable[..., Account]) -> Account:
    return new_account("ada")


@dataclass
class Reader:
    """A customer who asks for its own figures."""

    url: str
    account: Account
    token: str

    @property
    def customer_id(self) -> str:
        return self.account.customer_id

    def get(self, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.get(f"{self.url}/api/usage/{path}", headers=headers, timeout=10, **options)

    def read(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json(parse_float=Decimal)


@pytest.fixture
def new_reader(
    engine: sa.Engine, settings: Settings, new_account: Callable[..., Account]
) -> Callable[..., Reader]:
    """Makes subscribed customers with a token: ``new_reader("ada", plan="studio")``."""

    def make(
        name: str, *, plan: str | None = "indie", lifetime: timedelta = timedelta(hours=1), **terms: Any
    ) -> Reader:
        account = new_account(name)
        with engine.begin() as connection:
            sync_plans(connection)
            if plan is not None:
                subscribe(connection, NewSubscription(account.customer_id, plan, STARTED, **terms), NOW)
        token = issue_token(token_secret(settings), account.customer_id, NOW, lifetime)
        return Reader(settings.api_url, account, token)

    return make


@pytest.fixture
def models(warehouse: Client, _warehouse: Settings, tmp_path: Path) -> Iterator[Models]:
    """The dbt project on the shared warehouse, with nothing built yet and nothing left behind."""

    found = Models(_warehouse, warehouse, tmp_path)
    found.drop_all()
    yield found
    found.drop_all()


@pytest.fixture
def process_environment(settings: Settings) -> Callable[..., dict[str, str]]:
    """Environment of a child process with this test's stores; call it after the stores are there."""

    def make(**extra: str) -> dict[str, str]:
        urls = {"APEX_DATABASE_URL": settings.database_url, "APEX_CLICKHOUSE_URL": settings.clickhouse_url}
        return child_environment(settings, **({name: url for name, url in urls.items() if url} | extra))

    return make


@pytest.fixture
def new_api(
    settings: Settings, engine: sa.Engine, process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> Iterator[Callable[..., Api]]:
    """Starts the API: ``new_api(workers=2, APEX_SPOOL_HARD_LIMIT_BYTES="1000")``."""
    started: list[Api] = []

    def make(
        *,
        workers: int = 1,
        preexec: Callable[[], None] | None = None,
        log: Path = tmp_path / "api.log",
        launcher: tuple[str, ...] = Api.launcher,
        **extra: str,
    ) -> Api:
        api = Api(settings, log, process_environment(**extra), workers, preexec=preexec, launcher=launcher)
        started.append(api)
        api.start()
        return api

    yield make
    for api in started:
        api.stop()


@pytest.fixture
def api(new_api: Callable[..., Api]) -> Api:
    return new_api()


@pytest.fixture
def new_loader(
    process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> Iterator[Callable[..., LoaderProcess]]:
    """Starts a loader on this test's spool."""
    started: list[LoaderProcess] = []

    def make(*, launcher: tuple[str, ...] = LoaderProcess.launcher, **extra: str) -> LoaderProcess:
        loader = LoaderProcess(tmp_path / "loader.log", process_environment(**extra), launcher)
        started.append(loader)
        loader.start()
        return loader

    yield make
    for loader in started:
        loader.stop()


@pytest.fixture
def new_warehouse(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Warehouse]]:
    """Starts a warehouse of this test alone, with the raw tables in it; `settings` points at it."""
    started: list[Warehouse] = []

    def make(*, launcher: tuple[str, ...] = Warehouse.launcher) -> Warehouse:
        own = Settings(home=tmp_path / "warehouse", warehouse_port=free_port())
        front = Warehouse(own, tmp_path / "warehouse.log", launcher)
        started.append(front)
        front.start()
        settings.clickhouse_url = clickhouse.clickhouse_url(own)
        client = front.connect()
        clickhouse.migrate(client)
        client.close()
        return front

    yield make
    for front in started:
        if front.process is not None:
            stop(front.process)


@pytest.fixture
def own_postgres(settings: Settings) -> Iterator[Settings]:
    """A PostgreSQL server of this test alone, which it may kill; `settings` points at it."""
    # PostgreSQL, when started by root, runs as another user, who must reach the folder.
    with tempfile.TemporaryDirectory(prefix="apex-tests-", ignore_cleanup_errors=True) as folder:
        own = Settings(home=Path(folder))
        settings.database_url = postgres.start_embedded(own)
        postgres.migrate(own)
        yield own
        postgres.stop_embedded(own)


def kill_postgres(server: Settings) -> None:
    """SIGKILL the whole server at once."""
    postmaster = psutil.Process(int((server.postgres_dir / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


@pytest.fixture
def sigkills(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """Where a test notes whom it killed how often; pytest prints the sums at its end."""
    killed: Counter[str] = Counter()
    yield killed
    record_property("sigkills", dict(killed))


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    """A client of the running API."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        yield client


def event(**changes: Any) -> dict[str, Any]:
    """A valid event, with changes; a change to None leaves the field out."""
    base = {"metric_type": "impressions", "quantity": 3, "event_id": "evt-1"}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}
