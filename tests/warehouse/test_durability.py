"""What was acknowledged survives; a folder has one process; a stop is clean."""

from __future__ import annotations

import io
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import httpx
import psutil
import pytest

from tests.warehouse.conftest import PASSWORD, Front

BATCH_ROWS = 500


def insert_until_killed(front: Front, worker: int, acknowledged: list[int], stopped: threading.Event) -> None:
    """Insert numbered batches; note each one that was answered with 200."""
    batch = worker
    with httpx.Client(auth=("default", PASSWORD), timeout=30) as client:
        while not stopped.is_set():
            body = b"".join(b"%d,%d\n" % (batch, row) for row in range(BATCH_ROWS))
            try:
                response = client.post(
                    front.url, params={"query": "insert into log format CSV"}, content=body
                )
            except httpx.TransportError:
                return
            assert response.status_code == 200, response.text
            acknowledged.append(batch)
            batch += 4


def seconds_until_it_answers(front: Front) -> float:
    """Start it and select; from before the process exists to the first answer."""
    started = time.monotonic()
    front.process = front.launch()
    with httpx.Client(auth=("default", PASSWORD), timeout=30) as client:
        while time.monotonic() - started < 30:
            assert front.process.poll() is None, front.log.read_text()
            try:
                response = client.post(front.url, content="select 1")
            except httpx.TransportError:  # the port is not open yet; or the process ended, said above
                time.sleep(0.01)
                continue
            assert (response.status_code, response.text) == (200, "1\n")
            break
    return time.monotonic() - started


def kill_and_count(front: Front, rounds: int, seed: int) -> list[float]:
    """Kill it while it takes inserts, so many times; how long each start took until it answered."""
    seconds = []
    generator = random.Random(seed)
    front.value("create table log (batch UInt64, row UInt32) engine = MergeTree order by (batch, row)")
    acknowledged: set[int] = set()
    for number in range(rounds):
        answered: list[int] = []
        stopped = threading.Event()
        first = number * 1_000_000
        threads = [
            threading.Thread(target=insert_until_killed, args=(front, first + worker, answered, stopped))
            for worker in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(generator.uniform(0.05, 0.8))
        front.kill()
        stopped.set()
        for thread in threads:
            thread.join()
        acknowledged.update(answered)
        seconds.append(seconds_until_it_answers(front))
        rows = front.value("select batch, count(), uniqExact(row) from log group by batch").splitlines()
        stored = {int(batch): (int(count), int(distinct)) for batch, count, distinct in map(str.split, rows)}
        assert acknowledged <= stored.keys(), (
            f"lost in round {number}: {sorted(acknowledged - stored.keys())[:5]}"
        )
        torn = {batch: counts for batch, counts in stored.items() if counts != (BATCH_ROWS, BATCH_ROWS)}
        assert not torn, f"torn or doubled in round {number}: {torn}"
    assert acknowledged, "no insert was answered: the test proves nothing"
    return seconds


def test_a_kill_loses_no_acknowledged_row_and_tears_no_insert(own_front: Front) -> None:
    seconds = kill_and_count(own_front, rounds=4, seed=1)
    assert max(seconds) < 15


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(own_front: Front) -> None:
    seconds = sorted(kill_and_count(own_front, rounds=200, seed=2))
    shown = ", ".join(f"{share:.0%} {seconds[int(share * 199)]:.2f}" for share in (0, 0.5, 0.9, 0.99, 1))
    print(f"\nseconds from a start after SIGKILL to the first answer: {shown}")
    assert statistics.median(seconds) < 3, shown
    assert seconds[-1] < 6, shown


def test_a_projection_that_a_power_loss_emptied_is_left_aside_and_no_row_with_it(own_front: Front) -> None:
    """The engine syncs a part's own files, but not those of its projections."""
    own_front.value(
        "create table landed (customer String, row UInt32, "
        "projection by_customer (select customer, row order by customer)) engine = MergeTree order by row"
    )
    own_front.value(
        "insert into landed select concat('customer ', toString(number % 500)), number from numbers(100000)"
    )
    own_front.kill()
    written = list(own_front.home.rglob("by_customer.proj/*"))
    assert written
    for file in written:
        file.write_bytes(b"")
    own_front.start()
    assert (
        own_front.value("select count(), sum(row) from landed where customer = 'customer 7'")
        == "200\t9951400"
    )
    assert own_front.value("select count() from landed") == "100000"
    assert own_front.value("select is_broken from system.projection_parts where table = 'landed'") == "1"


def test_merges_keep_up_with_many_small_inserts(front: Front) -> None:
    front.value("create table many_parts (a UInt64) engine = MergeTree order by a")
    with httpx.Client(auth=("default", PASSWORD), timeout=60) as client:
        for number in range(400):
            response = client.post(
                front.url, params={"query": "insert into many_parts format CSV"}, content=b"%d\n" % number
            )
            assert response.status_code == 200, response.text
    active = "select count() from system.parts where table = 'many_parts' and active"
    deadline = time.monotonic() + 30
    while (parts := int(front.value(active))) >= 50 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert parts < 50
    assert front.value("select count(), uniqExact(a) from many_parts") == "400\t400"


def test_parts_are_synced_before_an_insert_is_answered(front: Front) -> None:
    names = "('fsync_after_insert', 'fsync_part_directory')"
    assert front.value(f"select groupArray(value) from system.merge_tree_settings where name in {names}") == (
        "['1','1']"
    )


def test_the_folder_belongs_to_one_process(own_front: Front) -> None:
    second = own_front.launch(port=own_front.port + 1)
    _, stderr = second.communicate(timeout=30)
    errors = stderr.decode().strip().splitlines()
    assert second.returncode == 1
    assert len(errors) == 1
    assert str(own_front.home / "warehouse") in errors[0]
    assert str(own_front.process.pid) in errors[0]
    assert "APEX_HOME" in errors[0]
    assert own_front.value("select 1") == "1"


def test_a_port_in_use_is_said_at_once(own_front: Front) -> None:
    own_front.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = own_front.launch(port=port)
        _, stderr = process.communicate(timeout=30)
    errors = stderr.decode().strip().splitlines()
    assert (process.returncode, len(errors)) == (1, 1)
    assert f"127.0.0.1:{port}" in errors[0]
    assert "--port" in errors[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_running_queries_end(own_front: Front, number: signal.Signals) -> None:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(own_front.request("select sleep(2), 7")))
    thread.start()
    time.sleep(0.7)
    own_front.process.send_signal(number)
    thread.join()
    assert answers[0].text == "0\t7\n"
    assert own_front.process.wait(20) == 0
    own_front.start()
    assert own_front.value("select 1") == "1"


def test_a_stop_does_not_wait_for_a_client_that_never_ends(
    own_front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_front.stop()
    monkeypatch.setenv("APEX_WAREHOUSE_STOP_SECONDS", "1")
    own_front.start()
    own_front.value("create table slow (a UInt64) engine = MergeTree order by a")

    def endless() -> object:
        while own_front.process.poll() is None:
            yield b"1\n"
            time.sleep(0.2)

    def insert() -> None:
        with pytest.raises((httpx.TransportError, AssertionError)):  # noqa: PT012
            response = own_front.request("insert into slow format CSV", content=endless())
            assert response.status_code == 200

    thread = threading.Thread(target=insert)
    thread.start()
    time.sleep(0.5)
    own_front.process.send_signal(signal.SIGTERM)
    assert own_front.process.wait(5) == 0
    thread.join()
    own_front.start()
    assert own_front.value("select count() from slow") == "0"


def test_a_body_over_the_limit_is_refused(own_front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    own_front.stop()
    monkeypatch.setenv("APEX_WAREHOUSE_MAX_BODY_BYTES", "100000")
    own_front.start()
    own_front.value("create table small (a UInt64) engine = MergeTree order by a")
    query = "insert into small format CSV"
    for content in (b"1\n" * 100_000, (b"1\n" * 1000 for _ in range(100))):
        response = own_front.request(query, content=content)
        assert response.status_code == 413
        assert "APEX_WAREHOUSE_MAX_BODY_BYTES" in response.text
    assert own_front.value("select count() from small") == "0"


def test_a_client_that_breaks_off_inserts_nothing(front: Front) -> None:
    front.value("create table broken_off (a UInt64) engine = MergeTree order by a")
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        connection.sendall(
            b"POST /?query=insert+into+broken_off+format+CSV HTTP/1.1\r\nHost: x\r\n"
            b"X-ClickHouse-Key: %s\r\nContent-Length: 1000\r\n\r\n1\n2\n3\n" % PASSWORD.encode()
        )
        time.sleep(0.3)
    time.sleep(0.5)
    assert front.value("select count() from broken_off") == "0"


def test_memory_has_a_limit(front: Front) -> None:
    query = "select length(groupArray(repeat('x', 1000))) from numbers(10000000)"
    response = front.request(query)
    assert response.headers["X-ClickHouse-Exception-Code"] == "241"
    assert front.value("select 1") == "1"


def peak_memory(front: Front, work: Callable[[], None]) -> int:
    """Bytes that the process holds more than before, at most, while `work` is done."""
    process = psutil.Process(front.process.pid)
    seen = [process.memory_info().rss]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(seen) - seen[0]


def send(front: Front, query: str, pieces: Iterator[bytes] | bytes, file: IO[bytes]) -> None:
    """A query with its data, and its result into `file`."""
    with httpx.stream(
        "POST",
        front.url,
        params={"query": query},
        content=pieces,
        headers={"Accept-Encoding": "identity"},
        auth=("default", PASSWORD),
        timeout=120,
    ) as response:
        assert response.status_code == 200, response.read()
        for piece in response.iter_raw():
            file.write(piece)


@pytest.mark.parametrize("format_name", ["Native", "RowBinary", "JSONEachRow", "CSV", "Parquet", "Arrow"])
@pytest.mark.measures
def test_memory_stays_flat_while_five_million_rows_go_out_and_in(own_front: Front, format_name: str) -> None:
    front = own_front
    front.value("create table flat (a UInt64, s String) engine = MergeTree order by tuple()")
    query = f"select number as a, toString(number * 7919) as s from numbers(5000000) format {format_name}"
    with tempfile.TemporaryFile() as file:
        out = peak_memory(front, lambda: send(front, query, b"", file))
        # Else what the export has left behind would count as what was there before the insert.
        front.kill()
        front.start()
        file.seek(0)
        pieces = iter(lambda: file.read(1 << 20), b"")
        insert = f"insert into flat format {format_name}"
        into = peak_memory(front, lambda: send(front, insert, pieces, io.BytesIO()))
    print(
        f"\n{format_name}: {out / 1e6:.0f} MB more while it goes out, {into / 1e6:.0f} MB while it comes in"
    )
    assert front.value("select count(), sum(a) from flat") == f"5000000\t{sum(range(5_000_000))}"
    assert max(out, into) < 700_000_000


@pytest.mark.measures
def test_memory_stays_flat_while_wide_rows_go_out_as_parquet(own_front: Front) -> None:
    """A group of rows is held until it is whole, so a group must be small."""
    wide = "concat(hex(sipHash128(number)), hex(sipHash128(number, 1)), hex(sipHash128(number, 2)))"
    query = f"select number, {wide} from numbers(2500000) format Parquet"
    with tempfile.TemporaryFile() as file:
        peak = peak_memory(own_front, lambda: send(own_front, query, b"", file))
    print(f"\nwide rows as Parquet: {peak / 1e6:.0f} MB more while they go out")
    assert peak < 500_000_000


def test_the_password_never_reaches_the_log(front: Front) -> None:
    front.request("select 1", auth=None, params={"user": "default", "password": PASSWORD})
    assert PASSWORD.encode() not in front.log.read_bytes()


def test_help_says_how_to_start() -> None:
    import sys

    command = [sys.executable, "-m", "apex_pipelines.platform.warehouse", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "--port" in result.stdout
