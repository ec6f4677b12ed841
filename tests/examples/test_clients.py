"""The example clients: each tracked event counts exactly once, whatever the API, the network or they do."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.settings import Settings
from tests.conftest import free_port
from tests.importing.fault_server import Fault, FaultServer
from tests.ingest.conftest import Account, Api, LoaderProcess

KEY = "apx_live_0123456789"
FLUSH_SECONDS = 0.15
# Long waits would show nothing more.
WAITS = {"APEX_FLUSH_SECONDS": str(FLUSH_SECONDS), "APEX_FIRST_PAUSE_SECONDS": "0.01"}


class Program:
    """A running client: lines go in, ids come out."""

    def __init__(self, command: list[str], url: str, key: str, queue_file: Path, **variables: str) -> None:
        environment = {**os.environ, **WAITS, "APEX_API_URL": url, "APEX_API_KEY": key, **variables}
        self.process = subprocess.Popen(
            [*command, str(queue_file)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.ids: list[str] = []
        self.said: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=parts, daemon=True)
            for parts in ((self.process.stdout, self.ids), (self.process.stderr, self.said))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str], lines: list[str]) -> None:
        lines.extend(line.strip() for line in stream)

    def track(self, *lines: str) -> None:
        """Track `metric quantity` lines; returns once each has its id."""
        wanted = len(self.ids) + len(lines)
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()
        self.wait_for(lambda: len(self.ids) >= wanted)

    def wait_for(self, is_so: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def end(self) -> int:
        """Close its input and return its exit code: 0 when all events were sent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        return code


@pytest.fixture
def run(client_command: list[str], tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts the client: ``run(url)``; all runs of a test have the same queue file."""
    started: list[Program] = []

    def start(url: str, key: str = KEY, **variables: str) -> Program:
        started.append(Program(client_command, url, key, tmp_path / "queue.ndjson", **variables))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.wait(10)


def throttled(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("apex_ingest_throttled_total{"))


def test_each_event_counts_once_while_the_api_is_killed_and_says_slow_down(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    run: Callable[..., Program],
) -> None:
    # A burst below a batch, and batches smaller than the client's: 429 and 413 in every run.
    # Clients stamp events with the machine's time, so the API must go by that too.
    api = new_api(
        APEX_CLOCK="system",
        APEX_API_KEY_EVENTS_PER_SECOND="150",
        APEX_API_KEY_BURST_EVENTS="150",
        APEX_API_MAX_BATCH_EVENTS="150",
    )
    new_loader()
    program = run(api.url, account.key)
    quantity = 0
    for seconds in (0.0, 0.1, 0.6):
        lines = [f"impressions {quantity + number}" for number in range(1, 201)]
        quantity += len(lines)
        program.track(*lines)
        program.wait_for(lambda: throttled(api.url) > 0)
        time.sleep(seconds)
        api.kill()
        api.start()
    assert program.end() == 0
    api.stop()
    wait_until_landed(settings.spool_dir, 60)
    # A kill between the commit and its answer leaves a repeat in the raw table; it is one event all the same.
    found = warehouse.query(
        "select event_id, any(quantity), uniqExact(quantity, event_time) "
        "from raw.usage_events group by event_id"
    ).result_rows
    assert sorted(row[0] for row in found) == sorted(program.ids)
    assert sum(row[1] for row in found) == sum(range(1, quantity + 1))
    assert {row[2] for row in found} == {1}


def test_an_event_that_is_no_json_for_the_api_is_dropped_alone(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    run: Callable[..., Program],
    tmp_path: Path,
) -> None:
    program = run(f"http://127.0.0.1:{free_port()}", account.key)
    program.track("impressions 1")
    queue_file = tmp_path / "queue.ndjson"
    # As the clients write half an emoji, and deeper than any decoder reads.
    bad = {
        "half-an-emoji": (r'"\ud83d"', "malformed_event"),
        "too-deep": ("[" * 5_000 + "]" * 5_000, "invalid_metadata"),
    }
    good_line = queue_file.read_text()
    with queue_file.open("a") as file:
        for name, (note, _) in bad.items():
            line = good_line.replace(program.ids[0], name)
            file.write(line.replace('"metadata":{}', f'"metadata":{{"note":{note}}}'))
    program.track("impressions 2")
    program.process.kill()
    program.process.wait(10)
    # Clients stamp events with the machine's time, so the API must go by that too.
    api = new_api(APEX_CLOCK="system")
    new_loader()
    again = run(api.url, account.key)
    again.track("impressions 3")
    assert again.end() == 0
    for said, (name, (_, reason)) in zip(again.said, bad.items(), strict=True):
        assert name in said
        assert reason in said
    assert queue_file.read_bytes() == b""
    api.stop()
    wait_until_landed(settings.spool_dir, 60)
    found = warehouse.query("select event_id from raw.usage_events").result_rows
    assert sorted(row[0] for row in found) == sorted(program.ids + again.ids)


def test_events_outlive_the_client(run: Callable[..., Program]) -> None:
    port = free_port()
    program = run(f"http://127.0.0.1:{port}")
    program.track("impressions 1", "mediated_revenue 0.123456")
    program.process.kill()
    program.process.wait(10)
    with FaultServer(port=port) as server:
        second = run(server.url)
        second.track("impressions 3")
        assert second.end() == 0
        assert set(server.events) == {*program.ids, *second.ids}
        quantities = {str(event["quantity"]) for event in server.events.values()}
        assert quantities == {"1", "0.123456", "3"}
        third = run(server.url)
        assert third.end() == 0
        assert len(server.arrivals) == 3  # what was sent is forgotten


def test_a_write_that_broke_off_spoils_no_other_event(run: Callable[..., Program], tmp_path: Path) -> None:
    program = run(f"http://127.0.0.1:{free_port()}")
    program.track("impressions 1")
    queue_file = tmp_path / "queue.ndjson"
    with queue_file.open("ab") as file:
        file.write(b'\n \n{"event_id":"torn","metadata":{"a":{}')
    program.track("impressions 2")
    program.process.kill()
    program.process.wait(10)
    with queue_file.open("ab") as file:
        file.write(b'{"event_id":"torn","metadata":{"a":{}}')
    with FaultServer() as server:
        again = run(server.url)
        again.track("impressions 3")
        assert again.end() == 0
        assert list(server.events) == program.ids + again.ids


def test_the_same_ids_are_sent_again_after_each_kind_of_failure(run: Callable[..., Program]) -> None:
    faults = [
        Fault.DROP_AFTER, Fault.BUSY, Fault.ERROR, Fault.HALF_ANSWER, Fault.GARBAGE, Fault.SHORT,
        Fault.LIST, Fault.NULL, Fault.NULL_RESULTS,
    ]  # fmt: skip

    def fault(number: int) -> Fault:
        return faults[number - 1] if number <= len(faults) else Fault.NONE

    with FaultServer(fault=fault, retry_after="1") as server:
        program = run(server.url)
        program.track(*["api_calls 1"] * 20)
        assert program.end() == 0
        assert server.requests == len(faults) + 1
        assert set(server.events) == set(program.ids)
        assert len(server.arrivals) == 20 * (len(faults) + 1 - 2)  # each time it was taken
        waits = [
            after - before
            for before, after in zip(server.request_times, server.request_times[1:], strict=False)
        ]
        assert waits[1] >= 1.0  # as Retry-After asked
        assert server.keys == {KEY.lower()}


@pytest.mark.parametrize("asked", ["0", "9" * 30])
def test_a_wild_retry_after_neither_ends_the_client_nor_lets_it_hammer(
    run: Callable[..., Program], asked: str
) -> None:
    with FaultServer(fault=lambda _: Fault.TOO_MANY, retry_after=asked) as server:
        program = run(server.url)
        program.track("impressions 1")
        program.wait_for(lambda: server.requests > 0)
        time.sleep(0.3)
        # Kotlin and Swift take what is no number of theirs for none, and back off.
        assert server.requests < 15
        assert not any("Error" in line or "Exception" in line for line in program.said)


def test_events_go_on_leaving_by_themselves_after_a_slow_answer(run: Callable[..., Program]) -> None:
    with FaultServer(delay_seconds=2 * FLUSH_SECONDS) as server:
        program = run(server.url)
        program.track("impressions 1")
        program.wait_for(lambda: server.requests == 1)
        program.track("impressions 2")  # while the first has no answer
        program.wait_for(lambda: len(server.events) == 2)
        time.sleep(FLUSH_SECONDS)
        program.track("impressions 3")
        program.wait_for(lambda: len(server.events) == 3, 10)


def test_batches_shrink_for_a_line_that_is_too_slow_and_grow_again_slowly(
    run: Callable[..., Program],
) -> None:
    faults = {1: Fault.SILENT, 2: Fault.TOO_SLOW, 3: Fault.TOO_LARGE}
    with FaultServer(fault=lambda number: faults.get(number, Fault.NONE)) as server:
        program = run(server.url, APEX_TIMEOUT_SECONDS="1", APEX_FLUSH_SECONDS="10")
        program.track(*["impressions 1"] * 80)
        assert program.end() == 0
        assert server.batch_sizes[:4] == [10, 11, 12, 13]
        assert sum(server.batch_sizes) == 80  # each taken once
        assert server.requests == len(faults) + len(server.batch_sizes)


def test_a_rejected_event_is_told_and_never_sent_again(run: Callable[..., Program]) -> None:
    def reject(event: dict[str, object]) -> str | None:
        return "unknown_metric" if event["metric_type"] == "smiles" else None

    with FaultServer(reject=reject) as server:
        program = run(server.url)
        program.track("impressions 1", "smiles 1", "impressions 2")
        assert program.end() == 0
        assert server.requests == 1
        assert set(server.events) == {program.ids[0], program.ids[2]}
        assert any("unknown_metric" in line and program.ids[1] in line for line in program.said)


def test_a_key_that_is_refused_stops_the_client_and_loses_nothing(run: Callable[..., Program]) -> None:
    with FaultServer(fault=lambda _: Fault.REFUSE_KEY) as server:
        program = run(server.url)
        program.track("impressions 1", "impressions 2")
        assert program.end() == 1
        assert server.requests == 1
        assert any("401" in line and "2 events are kept" in line for line in program.said)
        assert not any(KEY in line for line in program.said)
    with FaultServer() as server:
        again = run(server.url, "apx_live_better")
        assert again.end() == 0
        assert set(server.events) == set(program.ids)
