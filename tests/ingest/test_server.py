"""The API's processes: starting, replacing, draining and ending workers."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.ingest.conftest import Account, Api, event
from tests.ingest.waiting import until

SLOW_HEAD = (
    b"POST /api/usage/track HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
)


def test_connections_are_spread_over_the_workers(new_api: Callable[..., Api]) -> None:
    api = new_api(workers=2)
    wires = [api.connect() for _ in range(64)]
    port = api.settings.api_port

    def held(pid: int) -> int:
        return sum(
            each.laddr.port == port and bool(each.raddr) for each in psutil.Process(pid).net_connections()
        )

    until(lambda: sum(map(held, api.worker_pids())) == 64)
    assert min(map(held, api.worker_pids())) > 10  # of 32 on average; fewer once in some 10 million times
    for wire in wires:
        wire.close()


def test_a_drain_answers_what_is_under_way_and_refuses_who_comes_then(
    new_api: Callable[..., Api], account: Account
) -> None:
    api = new_api(workers=2)
    body = json.dumps(event(event_id="drained")).encode()
    with api.connect() as wire, api.connect() as idle:
        wire.sendall(SLOW_HEAD % (account.key.encode(), len(body)) + body[:-1])
        time.sleep(0.3)
        assert api.process is not None
        api.process.send_signal(signal.SIGTERM)
        assert idle.recv(10) == b""
        until(lambda: _refuses(api), 2)  # as soon as the other worker has heard of it
        wire.sendall(body[-1:])
        heard = wire.recv(4096)
        assert heard.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in heard
        began = time.monotonic()
        assert api.process.wait(15) == 0
        assert time.monotonic() - began < 5


def test_what_waits_for_a_killed_worker_is_served_by_its_successor(
    new_api: Callable[..., Api], account: Account
) -> None:
    api = new_api()
    (pid,) = api.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    answered: list[int] = []

    def send(number: int) -> None:
        body = event(event_id=f"waits-{number}")
        answer = httpx.post(f"{api.url}/api/usage/track", json=body, headers=account.bearer, timeout=20)
        answered.append(answer.status_code)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(5)]
    for sender in senders:
        sender.start()
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    for sender in senders:
        sender.join(20)
    assert answered == [200] * 5


def test_a_worker_that_can_not_start_is_tried_again_and_says_why_in_lines_of_the_log(
    new_api: Callable[..., Api],
) -> None:
    """Another process has its number, until it ends."""
    api = new_api(APEX_LOG_FORMAT="json")
    lock = api.settings.spool_dir / f"workers-{api.settings.api_port}.lock"
    (pid,) = api.worker_pids()
    # Whoever waits for a record lock gets it the moment that its holder is gone.
    with lock.open("rb+") as file:
        taken = threading.Event()

        def take() -> None:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
            taken.set()

        taker = threading.Thread(target=take)
        taker.start()
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        assert taken.wait(10)
        until(lambda: api.log.read_text().count("a worker has failed") >= 3)
    until(lambda: _answers(api))
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    failed = [line for line in lines if line["event"] == "a worker has failed"]
    assert all("worker numbers are taken" in line["exception"] for line in failed)
    assert any(line["event"].startswith("a worker ended by itself") for line in lines)


def test_two_servers_do_not_share_a_port(new_api: Callable[..., Api]) -> None:
    api = new_api(workers=2)
    with pytest.raises(OSError, match="in use"), socket.create_server(("127.0.0.1", api.settings.api_port)):
        pass


def _refuses(api: Api) -> bool:
    try:
        api.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def _answers(api: Api) -> bool:
    try:
        return httpx.get(f"{api.url}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
