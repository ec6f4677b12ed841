"""What the HTTP front costs against the same engine, with the same settings, in the same process."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

from apex_pipelines.platform.clickhouse import clickhouse_url
from apex_pipelines.settings import Settings

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

EXPORT_ROWS = 10_000_000
INSERT_ROWS = 2_000_000
ROUNDS = 5
EXPORT = f"select number, toString(number) from numbers({EXPORT_ROWS})"


class Wire:
    """HTTP in as few steps as can be, so that what is measured is the server."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(clickhouse_url(settings))
        self._address = (parts.hostname or "", parts.port or 0)
        credentials = b64encode(f"{parts.username}:{unquote(parts.password or '')}".encode())
        self._authorization = b"Authorization: Basic " + credentials + b"\r\n"
        self._buffer = memoryview(bytearray(1 << 20))
        self._kept: socket.socket | None = None

    def small(self, query: str) -> bytes:
        """A query with a small result, on a connection that is kept open."""
        if self._kept is None:
            self._kept = socket.create_connection(self._address)
            self._kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        text = query.encode()
        head = b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n"
        self._kept.sendall(head % (self._authorization, len(text)) + text)
        return self._kept.recv(65_536)

    def transfer(self, query: str, body: bytes = b"") -> int:
        """A query on a connection of its own, which ends with the answer; bytes received."""
        with socket.create_connection(self._address) as wire:
            head = b"POST /?query=%s HTTP/1.0\r\n%sContent-Length: %d\r\n\r\n"
            wire.sendall(head % (quote(query).encode(), self._authorization, len(body)))
            wire.sendall(body)
            received = count = wire.recv_into(self._buffer)
            assert bytes(self._buffer[:count]).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), bytes(
                self._buffer[:500]
            )
            while count:
                count = wire.recv_into(self._buffer)
                received += count
            return received


class Inside:
    """The engine in a process of its own, which takes orders through a pipe."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        command = [sys.executable, "-m", "benchmarks.in_process", str(home)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready"

    def seconds(self, **order: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    inside = Inside(tmp_path / "inside")
    yield inside
    inside.close()


@pytest.fixture
def wire(settings: Settings, warehouse: object) -> Wire:
    return Wire(settings)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def paired(rounds: int, alone: Callable[[], float], over_http: Callable[[], float]) -> tuple[float, float]:
    """Medians of both, taken in turn."""
    found = [(alone(), over_http()) for _ in range(rounds)]
    first, second = zip(*found, strict=True)
    return statistics.median(first), statistics.median(second)


def test_a_small_query_costs_two_milliseconds_more_at_most(inside: Inside, wire: Wire) -> None:
    query = "select 1"
    alone, over_http = paired(
        300,
        lambda: inside.seconds(text=query, format="TabSeparated"),
        lambda: timed(lambda: wire.small(query)),
    )
    print(f"\nselect 1: {alone * 1e3:.2f} ms in process, {over_http * 1e3:.2f} ms over HTTP")
    assert over_http - alone < 0.002


@pytest.mark.parametrize("name", ["Native", "RowBinary", "CSV", "JSONEachRow", "Parquet", "Arrow"])
def test_an_export_keeps_the_engines_rate(inside: Inside, wire: Wire, name: str) -> None:
    alone, over_http = paired(
        ROUNDS,
        lambda: inside.seconds(text=EXPORT, format=name),
        lambda: timed(lambda: wire.transfer(f"{EXPORT} format {name}")),
    )
    millions = EXPORT_ROWS / 1e6
    print(
        f"\nexport {name}: {millions / alone:.1f} M rows/s in process, {millions / over_http:.1f} over HTTP, "
        f"rate kept {alone / over_http:.2f}"
    )
    assert alone / over_http > 0.7


@pytest.mark.parametrize("name", ["Native", "RowBinary", "JSONEachRow"])
def test_a_bulk_insert_keeps_the_engines_rate(inside: Inside, wire: Wire, tmp_path: Path, name: str) -> None:
    file = tmp_path / "data"
    source = f"select number as a, toString(number) as s from numbers({INSERT_ROWS})"
    inside.seconds(text=f"{source} into outfile '{file}' truncate format {name}", format="TabSeparated")
    data = file.read_bytes()
    table = "create or replace table bulk (a UInt64, s String) engine = MergeTree order by a"

    def alone() -> float:
        inside.seconds(text=table, format="TabSeparated")
        return inside.seconds(
            text=f"insert into bulk from infile '{file}' compression 'none' format {name}", format=name
        )

    def over_http() -> float:
        wire.transfer(table)
        return timed(lambda: wire.transfer(f"insert into bulk format {name}", data))

    first, second = paired(ROUNDS, alone, over_http)
    assert wire.small("select count() from bulk").endswith(b"%d\n" % INSERT_ROWS)
    millions = INSERT_ROWS / 1e6
    print(
        f"\ninsert {name}: {millions / first:.1f} M rows/s in process, {millions / second:.1f} over HTTP, "
        f"rate kept {first / second:.2f}"
    )
    assert first / second > 0.7


def test_short_queries_go_on_beside_a_long_one(settings: Settings, warehouse: object) -> None:
    alone = statistics.median(short_queries(settings, 100))
    long = threading.Thread(
        target=Wire(settings).transfer,
        args=("select sum(cityHash64(number)) from numbers(1000000000) settings max_threads = 1",),
    )
    long.start()
    beside = short_queries(settings, 100)
    went_on = long.is_alive()
    long.join()
    median = statistics.median(beside)
    print(f"\nselect 1 beside a long query: {median * 1e3:.2f} ms, alone {alone * 1e3:.2f} ms")
    assert went_on
    assert median < 0.05


def short_queries(settings: Settings, times: int) -> list[float]:
    wire = Wire(settings)
    return [timed(lambda: wire.small("select 1")) for _ in range(times)]
