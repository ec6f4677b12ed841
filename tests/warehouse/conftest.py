"""A warehouse in a process of its own, as users run it, and the means to talk to it and to kill it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port, stop, wait_until_up

PASSWORD = "it's a/secret"
READER_PASSWORD = "read, please"


class Front:
    """A served warehouse: its process, its address, its data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.parent / f"{home.name}.log"
        self.process = self.start()

    def launch(self, port: int | None = None) -> subprocess.Popen[bytes]:
        """Start a process on the folder, without waiting for anything."""
        environment = child_environment(
            Settings(home=self.home),
            APEX_CLICKHOUSE_PASSWORD=PASSWORD,
            APEX_CLICKHOUSE_READER_PASSWORD=READER_PASSWORD,
            APEX_WAREHOUSE_MAX_MEMORY_BYTES="1500000000",
        )
        with self.log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "apex_pipelines.platform.warehouse",
                 "--host", "127.0.0.1", "--port", str(port or self.port)],
                env=environment, stdout=out, stderr=subprocess.PIPE if port else out,
            )  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        """Start and wait until it answers."""
        self.process = self.launch()
        wait_until_up(f"{self.url}/ping", self.process)
        return self.process

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        stop(self.process)
        return int(self.process.returncode)

    def client(self, **options: Any) -> Client:
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username="default", password=PASSWORD, **options
        )

    def request(
        self,
        query: str | None = None,
        *,
        method: str = "POST",
        auth: Any = ("default", PASSWORD),
        **options: Any,
    ) -> httpx.Response:
        """One request; `params` are its parameters, `content` its body, else the query is."""
        params = {key: str(value) for key, value in (options.pop("params", None) or {}).items()}
        if query is not None and ("content" in options or "files" in options or method == "GET"):
            params["query"] = query
        elif query is not None:
            options["content"] = query.encode()
        # Without a TLS context, which costs more than the request.
        return httpx.request(method, self.url, params=params, auth=auth, timeout=60, verify=False, **options)

    def value(self, query: str, **options: Any) -> str:
        """The result of a query that must succeed, without its last line break."""
        response = self.request(query, **options)
        assert response.status_code == 200, response.text
        return response.text.removesuffix("\n")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A warehouse that the tests of a module share; each uses tables of its own."""
    front = Front(tmp_path_factory.mktemp("warehouse") / "home")
    yield front
    front.stop()


@pytest.fixture
def own_front(tmp_path: Path) -> Iterator[Front]:
    """A warehouse for one test, which may kill it."""
    front = Front(tmp_path / "home")
    yield front
    if front.process.poll() is None:
        front.stop()
