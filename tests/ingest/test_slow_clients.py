"""Clients that are slow, silent or half gone: each is bounded, and nobody else notices."""

from __future__ import annotations

import contextlib
import fcntl
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from apex_pipelines.settings import Settings
from tests.ingest.conftest import Account, Api, Neighbour, event
from tests.ingest.spool_files import spooled
from tests.ingest.waiting import until

MIB = 1 << 20
TRACK = b"POST /api/usage/track HTTP/1.1\r\nHost: x\r\n"
ASK = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"

NewApi = Callable[..., Api]
NeighbourOf = Callable[[Api], Neighbour]


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Room for as many connections as this process may have, at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ended_after(wire: socket.socket, seconds: float) -> float:
    """Seconds until the server ends a connection on which it says nothing more."""
    begun = time.monotonic()
    wire.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while wire.recv(65_536):
            pass
    return time.monotonic() - begun


def established(api: Api) -> int:
    """Connections that the workers hold with clients."""
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == api.settings.api_port
        for pid in api.worker_pids()
        for connection in psutil.Process(pid).net_connections("tcp4")
    )


def idle_connections(api: Api, neighbour_of: NeighbourOf, count: int) -> None:
    before = api.resident()
    with contextlib.ExitStack() as wires, neighbour_of(api) as neighbour:
        for _ in range(count):
            wires.enter_context(api.connect())
        until(lambda: established(api) >= count)
        time.sleep(1)
        assert api.resident() - before < 16 * MIB + count * 4096
    neighbour.assert_unharmed()


def test_two_thousand_idle_connections_harm_nobody(new_api: NewApi, neighbour_of: NeighbourOf) -> None:
    idle_connections(new_api(), neighbour_of, 2_000)


@pytest.mark.faults
def test_ten_thousand_idle_connections_harm_nobody_and_end_by_themselves(
    new_api: NewApi, neighbour_of: NeighbourOf, many_descriptors: int
) -> None:
    if many_descriptors < 11_000:
        pytest.skip(f"a process may have {many_descriptors} descriptors here; this needs 11,000")
    api = new_api(APEX_API_IDLE_SECONDS="20")
    idle_connections(api, neighbour_of, 10_000)
    with contextlib.ExitStack() as wires:
        for _ in range(10_000):
            wires.enter_context(api.connect())
        until(lambda: established(api) == 0, 60)


def test_few_descriptors_mean_few_connections_and_stop_nothing(
    new_api: NewApi, account: Account, settings: Settings
) -> None:
    """As where an administrator allows 200: more would leave none for segments, and make the worker spin."""
    api = new_api(
        preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)), APEX_API_IDLE_SECONDS="2"
    )
    assert "fewer connections too" in api.log.read_text()
    (pid,) = api.worker_pids()
    with contextlib.ExitStack() as wires:
        for _ in range(300):
            wires.enter_context(api.connect())
        assert psutil.Process(pid).cpu_percent(interval=1.0) < 60, "it spins"
        # The kernel holds the others until an idle one has ended.
        answer = httpx.post(f"{api.url}/api/usage/track", json=event(), headers=account.bearer, timeout=30)
        assert answer.status_code == 200
    assert len(spooled(settings.spool_dir)) == 1
    assert "error" not in api.log.read_text()


def test_a_soft_limit_on_descriptors_is_raised(new_api: NewApi) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    api = new_api(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
    for pid in api.worker_pids():
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft > 16_384 or soft == hard


def test_headers_that_trickle_in_are_cut_off(
    new_api: NewApi, neighbour_of: NeighbourOf, account: Account
) -> None:
    api = new_api(APEX_API_IDLE_SECONDS="2")
    with contextlib.ExitStack() as stack, neighbour_of(api) as neighbour:
        wires = [stack.enter_context(api.connect()) for _ in range(200)]
        done = threading.Event()

        def trickle() -> None:
            while not done.wait(0.2):
                for wire in wires:
                    with contextlib.suppress(OSError):
                        wire.sendall(b"x")

        for wire in wires:
            wire.sendall(TRACK + b"X-Slow: ")
        sender = threading.Thread(target=trickle)
        sender.start()
        waited = ended_after(wires[-1], 10)
        done.set()
        sender.join(10)
        assert 1.0 < waited < 6.0  # a byte now and then does not buy time
    neighbour.assert_unharmed()


def test_a_connection_without_a_next_request_ends(new_api: NewApi) -> None:
    with new_api(APEX_API_IDLE_SECONDS="2").connect() as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        assert 1.0 < ended_after(wire, 10) < 6.0


@pytest.mark.measures
def test_a_body_that_trickles_in_is_answered_408(
    new_api: NewApi, neighbour_of: NeighbourOf, account: Account, settings: Settings
) -> None:
    api = new_api(APEX_API_BODY_SECONDS="2")
    with contextlib.ExitStack() as stack, neighbour_of(api) as neighbour:
        for more in (b"Content-Length: 50\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n32\r\n"):
            wire = stack.enter_context(api.connect())
            wire.sendall(TRACK + b"Authorization: Bearer " + account.key.encode() + b"\r\n" + more)
            wire.settimeout(0.2)
            heard = b""
            begun = time.monotonic()
            while not heard and time.monotonic() - begun < 10:
                wire.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    heard = wire.recv(4096)
            assert heard.startswith(b"HTTP/1.1 408"), heard
            assert b'"body_too_slow"' in heard
            assert b"within 2 s" in heard
            wire.settimeout(5)
            assert wire.recv(4096) == b""
    neighbour.assert_unharmed()
    assert {row.event_id for row in spooled(settings.spool_dir)} == set(neighbour.acknowledged)


@pytest.mark.measures
def test_large_bodies_that_are_left_unfinished_take_bounded_memory(
    new_api: NewApi, neighbour_of: NeighbourOf, account: Account
) -> None:
    """Two hundred that stop a byte before the end of a megabyte, where there is room for eight."""
    api = new_api(APEX_API_MAX_UPLOADING_BYTES=str(8 * MIB), APEX_API_BODY_SECONDS="5")
    body = b" " * (MIB - 1)
    batch = [event(event_id=f"large-{number}", metadata={"a": "x" * 90}) for number in range(200)]
    with neighbour_of(api) as neighbour, contextlib.ExitStack() as stack:
        time.sleep(0.3)
        before = api.resident()
        refused = 0
        for _ in range(200):
            wire = stack.enter_context(api.connect())
            with contextlib.suppress(ConnectionError):
                wire.sendall(TRACK + b"Content-Length: %d\r\n\r\n" % MIB)
                wire.sendall(body)
            wire.settimeout(0.01)
            with contextlib.suppress(TimeoutError, ConnectionError):
                refused += wire.recv(4096).startswith(b"HTTP/1.1 503")
        assert refused >= 100
        answer = httpx.post(f"{api.url}/api/usage/batch", json=batch, headers=account.bearer)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_uploads")
        assert int(answer.headers["retry-after"]) > 0
        assert api.resident() - before < 64 * MIB

        def is_taken() -> bool:
            return (
                httpx.post(f"{api.url}/api/usage/batch", json=batch, headers=account.bearer).status_code
                == 200
            )

        until(is_taken)
    neighbour.assert_unharmed()


@pytest.mark.measures
def test_answers_that_nobody_reads_are_given_up(new_api: NewApi, neighbour_of: NeighbourOf) -> None:
    api = new_api(APEX_API_UNREAD_SECONDS="4")
    httpx.get(f"{api.url}/openapi.json")
    before = api.resident()
    with contextlib.ExitStack() as stack, neighbour_of(api) as neighbour:
        for _ in range(20):
            wire = stack.enter_context(api.connect(receive_buffer=4096))
            wire.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                while wire.send(ASK * 100):
                    pass
        assert established(api) >= 20
        assert api.resident() - before < 20 * MIB
        until(lambda: established(api) < 5)
    neighbour.assert_unharmed()


def test_a_client_that_reads_slowly_gets_all_of_its_answer(new_api: NewApi) -> None:
    api = new_api(APEX_API_UNREAD_SECONDS="2")
    whole = len(httpx.get(f"{api.url}/openapi.json").content)
    with api.connect(receive_buffer=4096) as wire:
        wire.sendall(ASK.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        heard = 0
        begun = time.monotonic()
        while piece := wire.recv(2048):
            heard += len(piece)
            time.sleep(0.1)
    assert time.monotonic() - begun > 2.5
    assert heard > whole


def test_a_client_that_closes_its_side_early_hears_the_answer_and_may_repeat(
    new_api: NewApi, neighbour_of: NeighbourOf, account: Account, settings: Settings
) -> None:
    """Half-closed after the request, or before its end; the same event id is safe to send."""
    api = new_api()
    body = b'{"metric_type": "impressions", "quantity": 1, "event_id": "half"}'
    head = b"%sAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (
        TRACK,
        account.key.encode(),
        len(body),
    )
    with neighbour_of(api) as neighbour:
        for _ in range(20):
            with api.connect() as wire:
                wire.sendall(head + body)
                wire.shutdown(socket.SHUT_WR)
                assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(20):
            with api.connect() as wire:
                wire.sendall(head + body[:-10])
                wire.shutdown(socket.SHUT_WR)
                assert b"body_cut_off" in wire.recv(4096)
        again = httpx.post(f"{api.url}/api/usage/track", content=body, headers=account.bearer)
        assert again.status_code == 200
        time.sleep(0.3)
    neighbour.assert_unharmed()
    of_account = [row for row in spooled(settings.spool_dir) if row.customer_id == account.customer_id]
    # Each is durable although nobody heard of it; the models count the first.
    assert {row.event_id for row in of_account} == {"half"}


def test_a_worker_holds_the_lock_on_its_number_once(new_api: NewApi) -> None:
    """A copy of the lock's descriptor would end the lock when it is closed."""
    api = new_api()
    lock = api.settings.spool_dir / f"workers-{api.settings.api_port}.lock"
    (worker,) = api.worker_pids()
    descriptors = Path(f"/proc/{worker}/fd").iterdir()
    assert [each.resolve() for each in descriptors].count(lock) == 1
    with lock.open("rb+") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
