"""The world that tests run in: real PostgreSQL, a real ClickHouse engine over HTTP, a clock they control."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

# A developer's own settings, in variables or in .env, must not lead the tests to their stores. Before any
# import of ours, since settings look for their file when they are imported; child processes inherit it.
for _name in [name for name in os.environ if name.startswith("APEX_")]:
    del os.environ[_name]
os.environ["APEX_ENV_FILE"] = os.devnull

from apex_pipelines.platform import clickhouse, postgres  # noqa: E402
from apex_pipelines.platform.clock import ManualClock  # noqa: E402
from apex_pipelines.settings import Settings, child_environment  # noqa: E402

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT_ROOT.parent / "shared" / "data"


def pytest_configure() -> None:
    """Hear Ctrl-C although a shell's background jobs ignore it, and with them all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Three tries for a test that measures seconds or memory: others may have the machine for a moment.

    What proves that nothing is lost has one, whatever else it measures.
    """
    for item in items:
        if item.get_closest_marker("measures"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))


def free_port() -> int:
    """A TCP port that was free a moment ago, and that the kernel gives to no connection of a client.

    A server that is killed and started again on its port would else find it taken now and then.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_up(url: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Wait until `url` answers 200; fail at once when the process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(
                f"process {process.args!r} ended with {process.returncode} before {url} answered"
            )
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} did not answer within {seconds} s")


def stop(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """SIGTERM, then SIGKILL when that is not obeyed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A disk of its own at `folder`, such as ``mounted(folder, "-t", "tmpfs", "-o", "size=1m", "tmpfs")``.

    The test is skipped where that is not allowed.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def _server_settings() -> Iterator[Settings]:
    """Settings of the servers that all tests share; each test gets its own database and folders."""
    # Not below pytest's own folder: each start of pytest closes that to others, and PostgreSQL, when started
    # by root, runs as another user.
    with tempfile.TemporaryDirectory(prefix="apex-tests-", ignore_cleanup_errors=True) as folder:
        yield Settings(
            home=Path(folder), warehouse_port=free_port(), warehouse_max_memory_bytes=1_500_000_000
        )


@pytest.fixture(scope="session")
def _postgres(_server_settings: Settings) -> Iterator[str]:
    """URL of a running server with a migrated database that serves as template."""
    url = postgres.start_embedded(_server_settings)
    postgres.migrate(_server_settings)
    yield url
    postgres.stop_embedded(_server_settings)


@pytest.fixture(scope="session")
def _warehouse(_server_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    log = tmp_path_factory.mktemp("warehouse-log") / "warehouse.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_pipelines.platform.warehouse",
             "--host", "127.0.0.1", "--port", str(_server_settings.warehouse_port)],
            env=child_environment(_server_settings), stdout=out, stderr=out,
        )  # fmt: skip
        wait_until_up(f"http://127.0.0.1:{_server_settings.warehouse_port}/ping", process)
        client = clickhouse.connect(_server_settings, query_origin="tests")
        clickhouse.migrate(client)
        client.close()
        yield _server_settings
        stop(process)


@pytest.fixture
def settings(tmp_path: Path, _server_settings: Settings) -> Settings:
    """Settings of one test: its own data folder and free ports; no store is started for it."""
    return Settings(
        home=tmp_path / "apex",
        clock="2026-06-01T00:00:00Z",
        api_port=free_port(),
        dagster_port=free_port(),
        warehouse_port=_server_settings.warehouse_port,
    )


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """What a test's supervisor or server does with signals ends with it: the next one may want Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock() -> ManualClock:
    """Stands at 2026-06-01 00:00 UTC until the test moves it."""
    return ManualClock(datetime(2026, 6, 1, tzinfo=UTC))


@pytest.fixture
def engine(settings: Settings, _postgres: str, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """Engine on a fresh, migrated database of this test; `settings.database_url` points at it too."""
    name = f"test_{abs(hash(request.node.nodeid)):x}_{os.getpid()}"
    admin_url = sa.make_url(_postgres).set(drivername="postgresql+psycopg", database="postgres")
    admin = sa.create_engine(admin_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text(f'create database "{name}" template "{postgres.DATABASE}"'))
    url = sa.make_url(_postgres).set(database=name)
    settings.database_url = url.render_as_string(hide_password=False)
    engine = postgres.create_engine(settings)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(sa.text(f'drop database "{name}" with (force)'))
    admin.dispose()


@pytest.fixture
def warehouse(settings: Settings, _warehouse: Settings) -> Iterator[Client]:
    """Client of the served warehouse, with the raw and ml tables emptied; `settings` points at it."""
    settings.clickhouse_url = clickhouse.clickhouse_url(_warehouse)
    assert urlsplit(settings.clickhouse_url).port == _warehouse.warehouse_port  # it is emptied below
    client = clickhouse.connect(settings, query_origin="tests")
    tables = client.query(
        "select database, name from system.tables where database in ('raw', 'ml') "
        "and engine like '%MergeTree' and name != 'schema_migrations'"
    ).result_rows
    for database, name in tables:
        client.command(f"truncate table {database}.{name}")
    yield client
    client.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print whom the tests killed how often: a fault test that kills nobody proves nothing."""
    killed: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                killed.update(dict(report.user_properties).get("sigkills", {}))
    if killed:
        whom = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
        terminalreporter.write_line(f"SIGKILLs: {killed.total()} ({whom})")
