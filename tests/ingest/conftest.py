"""Real processes of the ingest API and of the loader, and customers with keys to use them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from apex_pipelines.customers.keys import issue_key
from apex_pipelines.customers.models import Customer, KeyScope
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import stop, wait_until_up

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Api:
    """The API as a process group of its own."""

    settings: Settings
    log: Path
    environment: dict[str, str]
    workers: int = 1
    process: subprocess.Popen[bytes] | None = None
    preexec: Callable[[], None] | None = None

    @property
    def url(self) -> str:
        return self.settings.api_url

    def command(self) -> list[str]:
        port = str(self.settings.api_port)
        return [sys.executable, "-m", "ingest_api", "--port", port, "--workers", str(self.workers)]

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(), env=self.environment, stdout=out, stderr=out, preexec_fn=self.preexec
            )
        wait_until_up(f"{self.url}/health", self.process)

    def worker_pids(self) -> list[int]:
        assert self.process is not None
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def kill(self) -> None:
        """SIGKILL the server and its workers at once, as a crash of the machine would."""
        assert self.process is not None
        pids = [*self.worker_pids(), self.process.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        for pid in pids[:-1]:
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                pass

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None


@dataclass
class LoaderProcess:
    """The loader as a process."""

    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest_api.loader"], env=self.environment, stdout=out, stderr=out
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None


@dataclass(frozen=True)
class Account:
    """A customer and the plaintext of its key."""

    customer_id: str
    key: str
    key_id: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


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

    def make(*, workers: int = 1, preexec: Callable[[], None] | None = None, **extra: str) -> Api:
        api = Api(settings, tmp_path / "api.log", process_environment(**extra), workers, preexec=preexec)
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

    def make(**extra: str) -> LoaderProcess:
        loader = LoaderProcess(tmp_path / "loader.log", process_environment(**extra))
        started.append(loader)
        loader.start()
        return loader

    yield make
    for loader in started:
        loader.stop()


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    """A client of the running API."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        yield client


def event(**changes: Any) -> dict[str, Any]:
    """A valid event, with changes; a change to None leaves the field out."""
    base = {"metric_type": "impressions", "quantity": 3, "event_id": "evt-1"}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}
