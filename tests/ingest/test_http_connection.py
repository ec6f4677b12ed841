"""HTTP on the wire: however bytes are cut, each request is read once, whole, and answered in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_api.http_connection import ConnectionLimits, Connections, HttpConnection
from ingest_api.http_head import RequestHead
from ingest_api.responses import Answer, HttpError
from ingest_api.worker import Door

LIMITS = ConnectionLimits(body_size=100_000, head_seconds=30, body_seconds=30, uploading_size=300_000)
HOST = b"Host: x\r\n"


class Echo:
    """Answers with what it was asked; `/slow` only once it may, `/refused` is refused without its body."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: list[str] = []

    async def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def refusal(self, head: RequestHead) -> HttpError | None:
        return HttpError(404, "not_found", "refused") if head.path == "/refused" else None

    async def answer(self, head: RequestHead, body: bytes, problem: HttpError | None) -> Answer:
        self.asked.append(head.path)
        if problem is not None:
            closes = ("connection", "close") in problem.headers
            lines = b"connection: close\r\n" if closes else b""
            return Answer(problem.status, lines, problem.code.encode(), closes)
        if head.path == "/slow":
            while not self.may_answer.is_set():
                await asyncio.sleep(0.01)
        if head.path == "/bug":
            raise RuntimeError("a bug")
        if head.path == "/large":
            return Answer(200, b"", bytes(4_000_000), False)
        if head.path == "/empty":
            return Answer(204, b"", b"", False)
        text = f"{head.method} {head.path} {head.query} {head.headers.get('x-a', '-')} "
        return Answer(200, b"", text.encode() + body, False)


class Served:
    """Connections in an event loop of their own."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.echo = Echo()
        self._limits = limits
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections = Connections(self.echo, self._limits, self.loop)
        server = await self.loop.create_server(lambda: HttpConnection(self.connections), "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()
        self._ended = asyncio.Event()
        self._ready.set()
        await self._ended.wait()
        server.close()
        await self.connections.drain(0.0)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def heard(self, sent: bytes, *, half_close: bool = False) -> bytes:
        """All that comes back until the server closes the connection."""
        with self.connect() as wire:
            wire.sendall(sent)
            if half_close:
                wire.shutdown(socket.SHUT_WR)
            return all_of(wire)

    def drain(self, seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(self.connections.drain(seconds), self.loop).result(20)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.end()


@pytest.fixture
def new_served() -> Iterator[Callable[..., Served]]:
    with contextlib.ExitStack() as stack:

        def make(**limits: float) -> Served:
            values = {name: getattr(LIMITS, name) for name in LIMITS.__slots__} | limits
            server = Served(ConnectionLimits(**values))
            stack.callback(server.end)
            return server

        yield make


def all_of(wire: socket.socket) -> bytes:
    heard = b""
    while piece := wire.recv(65_536):
        heard += piece
    return heard


def answers(heard: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer, by its Content-Length."""
    found = []
    while heard:
        head, _, heard = heard.partition(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(lines.get(b"content-length", 0))
        found.append((int(head[9:12]), heard[:length]))
        heard = heard[length:]
    return found


def post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (path, HOST, more, len(body), body)


def chunked(path: bytes, *chunks: bytes, trailers: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    head = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path, HOST)
    return head + framed + b"0\r\n" + trailers + b"\r\n"


LAST = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"

bodies = st.binary(max_size=300)
requests = st.one_of(
    st.builds(lambda body: (post(b"/p?q=1", body), (200, b"POST /p q=1 - " + body)), bodies),
    st.builds(lambda body: (post(b"/refused", body), (404, b"not_found")), bodies),
    st.just((b"GET /g%20h HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n", (200, b"GET /g h  b "))),
    st.just((b"\r\nGET http://x/y?z HTTP/1.1\r\n" + HOST + b"\r\n", (200, b"GET /y z - "))),
    st.just((b"GET /empty HTTP/1.1\r\n" + HOST + b"\r\n", (204, b""))),
)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_however_the_bytes_are_cut_each_request_has_its_answer(served: Served, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(requests, max_size=8))
    sent = b"".join(request for request, _ in wanted) + LAST
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    with served.connect() as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            wire.sendall(sent[start:end])
            time.sleep(0.0005)
        heard = all_of(wire)
    assert answers(heard) == [answer for _, answer in wanted] + [(200, b"GET /last  - ")]


@given(chunks=st.lists(bodies, max_size=6), cuts=st.lists(st.integers(0, 2_000), max_size=6))
@settings(deadline=None, max_examples=40)
def test_a_body_in_chunks_is_put_together_however_it_is_cut(
    served: Served, chunks: list[bytes], cuts: list[int]
) -> None:
    sent = chunked(b"/c", *chunks, trailers=b"X-A: from a trailer\r\n")
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    with served.connect() as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in pairwise(places):
            wire.sendall(sent[start:end])
            time.sleep(0.0005)
        first = wire.recv(65_536)
        while b"".join(chunks) not in first:
            first += wire.recv(65_536)
        wire.sendall(LAST)  # the connection goes on
        heard = first + all_of(wire)
    assert answers(heard) == [(200, b"POST /c  - " + b"".join(chunks)), (200, b"GET /last  - ")]


def test_what_follows_the_last_chunk_at_once_is_no_request(served: Served) -> None:
    heard = served.heard(chunked(b"/c", b"abc") + LAST)
    assert answers(heard) == [(200, b"POST /c  - abc")]
    assert b"connection: close" in heard


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + 2 * HOST + b"\r\n",
        b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    ],
)
def test_what_is_no_request_is_answered_400_and_nothing_after_it_is_read(served: Served, sent: bytes) -> None:
    before = len(served.echo.asked)
    heard = served.heard(sent + LAST)
    assert answers(heard) == [(400, b"bad_request")]
    assert b"connection: close" in heard
    assert len(served.echo.asked) == before + 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"a%d: b\r\n" % number for number in range(101)) + b"\r\n",
    ],
)
def test_a_head_beyond_the_limits_is_answered_431(served: Served, head: bytes) -> None:
    assert answers(served.heard(head)) == [(431, b"head_too_large")]


def test_an_offer_of_another_protocol_is_passed_over(served: Served) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
    get = b"GET /u HTTP/1.1\r\n" + HOST + offer + b"\r\n"
    heard = served.heard(get + post(b"/v", b"body", offer) + LAST)
    assert answers(heard) == [(200, b"GET /u  - "), (200, b"POST /v  - body"), (200, b"GET /last  - ")]
    # As Java's client sends a body of unknown length.
    in_chunks = chunked(b"/w", b"abc", b"de").replace(HOST, HOST + offer)
    with served.connect() as wire:
        for start in range(0, len(in_chunks), 7):
            wire.sendall(in_chunks[start : start + 7])
            time.sleep(0.001)
        first = wire.recv(65_536)
        wire.sendall(LAST)
        wanted = [(200, b"POST /w  - abcde"), (200, b"GET /last  - ")]
        assert answers(first + all_of(wire)) == wanted


def test_old_clients_are_served_and_keep_their_connection_when_they_ask(served: Served) -> None:
    old = b"GET /old HTTP/1.0\r\n\r\n"
    assert answers(served.heard(old)) == [(200, b"GET /old  - ")]
    kept = b"GET /kept HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    heard = served.heard(kept + old)
    assert answers(heard) == [(200, b"GET /kept  - "), (200, b"GET /old  - ")]
    assert heard.count(b"connection: keep-alive") == 1


def test_head_is_answered_with_the_length_and_without_the_body(served: Served) -> None:
    with served.connect() as wire:
        wire.sendall(b"HEAD /h HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(0.1)
        heard = wire.recv(65_536)
        assert heard.endswith(b"content-length: 11\r\n\r\n")
        wire.sendall(LAST)
        assert answers(all_of(wire)) == [(200, b"GET /last  - ")]


def test_who_asks_for_permission_gets_it_or_the_answer(served: Served) -> None:
    expect = b"POST %b HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with served.connect() as wire:
        wire.sendall(expect % (b"/e", 3))
        assert wire.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.sendall(b"abc" + LAST)
        assert answers(all_of(wire)) == [(200, b"POST /e  - abc"), (200, b"GET /last  - ")]
    for path, length, status in ((b"/refused", 3, 404), (b"/e", 100_001, 413), (b"/e", 10**12, 413)):
        assert [found for found, _ in answers(served.heard(expect % (path, length)))] == [status]


def test_who_sends_too_much_reads_why(served: Served) -> None:
    """Also where it reads nothing before it has sent all: the answer must not be lost with the connection."""
    for size in (100_001, 350_000, 3_000_000):
        for sent in (post(b"/big", b"x" * size), chunked(b"/big", *[b"x" * 50_000] * (size // 50_000 + 1))):
            with served.connect() as wire:
                wire.sendall(sent)
                assert [status for status, _ in answers(all_of(wire))] == [413], size
    tiny = chunked(b"/big", *[b"x"] * 90_000)  # six bytes on the wire for each that counts
    assert [status for status, _ in answers(served.heard(tiny))] == [413]


def test_large_bodies_share_the_room_and_give_it_back(new_served: Callable[..., Served]) -> None:
    served = new_served()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            wire = stack.enter_context(served.connect())
            wire.sendall(post(b"/p", b"x" * 90_000)[:-1])
        time.sleep(0.2)
        assert answers(served.heard(post(b"/p", b"x" * 90_000))) == [(503, b"too_many_uploads")]
        assert answers(served.heard(chunked(b"/p", b"x" * 90_000))) == [(503, b"too_many_uploads")]
        small = post(b"/p", b"x") + LAST
        assert [status for status, _ in answers(served.heard(small))] == [200, 200]
    time.sleep(0.2)
    for _ in range(10):
        whole = post(b"/p", b"x" * 90_000) + LAST
        assert [status for status, _ in answers(served.heard(whole))] == [200, 200]
    assert served.connections.room == LIMITS.uploading_size


def test_a_client_that_closes_its_side_hears_the_answer_to_what_it_sent_whole(served: Served) -> None:
    served.echo.may_answer.clear()
    threading.Timer(0.3, served.echo.may_answer.set).start()
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    heard = served.heard(slow + post(b"/p", b"a") + post(b"/p", b"b")[:-1], half_close=True)
    wanted = [(200, b"GET /slow  - "), (200, b"POST /p  - a"), (400, b"body_cut_off")]
    assert answers(heard) == wanted
    assert served.heard(b"GET /x HTT", half_close=True) == b""


def test_a_bug_ends_its_connection_and_no_other(served: Served) -> None:
    with served.connect() as wire, contextlib.suppress(ConnectionError):
        wire.sendall(b"GET /bug HTTP/1.1\r\n" + HOST + b"\r\n")
        assert wire.recv(100) == b""
    assert answers(served.heard(LAST)) == [(200, b"GET /last  - ")]


def test_a_client_that_disappears_takes_nothing_with_it(served: Served) -> None:
    served.echo.may_answer.clear()
    for _ in range(20):
        with served.connect() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # closing resets
            wire.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
            time.sleep(0.01)
    served.echo.may_answer.set()
    deadline = time.monotonic() + 5
    while served.connections.open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not served.connections.open
    assert not served.connections.awaiting_head
    assert not served.connections.awaiting_body


def test_silent_and_slow_clients_are_given_up(new_served: Callable[..., Served]) -> None:
    served = new_served(head_seconds=0.5, body_seconds=0.5)
    for sent, wanted in (
        (b"", []),
        (b"GET / HTTP/1.1\r\n", []),
        (post(b"/p", b"ab")[:-1], [(408, b"body_too_slow")]),
        (chunked(b"/p", b"ab")[:-4], [(408, b"body_too_slow")]),
        (b"GET /g HTTP/1.1\r\n" + HOST + b"\r\n", [(200, b"GET /g  - ")]),
    ):
        began = time.monotonic()
        assert answers(served.heard(sent)) == wanted
        assert time.monotonic() - began > 0.4


def test_a_drain_answers_what_is_under_way_and_closes_the_rest(new_served: Callable[..., Served]) -> None:
    served = new_served()
    with served.connect() as idle, served.connect() as busy, served.connect() as sending:
        busy.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n" + LAST)
        sending.sendall(post(b"/p", b"abc")[:-1])
        time.sleep(0.2)
        draining = threading.Thread(target=served.drain, args=(10,))
        draining.start()
        assert all_of(idle) == b""
        served.echo.may_answer.set()
        heard = all_of(busy)
        assert answers(heard) == [(200, b"GET /slow  - ")]
        assert b"connection: close" in heard
        sending.sendall(b"c")
        assert answers(all_of(sending)) == [(200, b"POST /p  - abc")]
        began = time.monotonic()
        draining.join(10)
        assert time.monotonic() - began < 5
    assert not served.connections.open


def test_a_drain_ends_by_force_in_the_end(new_served: Callable[..., Served]) -> None:
    served = new_served()
    with served.connect() as wire:
        wire.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(0.1)
        served.drain(0.3)
        with contextlib.suppress(ConnectionError):
            assert wire.recv(100) == b""
    served.echo.may_answer.set()


def large_and_then(served: Served, more: bytes) -> socket.socket:
    """A client that asks for more than the kernel holds, and then more, and reads nothing yet."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.settimeout(10)
    wire.connect(served.address)
    wire.sendall(
        b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n" + more
    )
    time.sleep(0.3)
    return wire


def test_what_was_sent_whole_is_answered_once_answers_are_read_again(served: Served) -> None:
    more = post(b"/p", b"a") * 10
    with large_and_then(served, more) as wire:
        wire.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        heard = answers(all_of(wire))
    assert [status for status, _ in heard] == [200] * 12
    assert [len(body) for _, body in heard[:2]] == [4_000_000] * 2
    assert heard[2:] == [(200, b"POST /p  - a")] * 10


def test_a_slow_reader_gets_all_of_its_last_answer(served: Served) -> None:
    """Also when more was sent than was taken, so that the connection lingers."""
    with large_and_then(served, LAST.replace(b"/last", b"/large") + b"more") as wire:
        time.sleep(3.5)  # longer than a connection lingers
        assert [len(body) for _, body in answers(all_of(wire))] == [4_000_000] * 3


def test_an_idle_connection_keeps_nothing_of_what_it_sent(served: Served) -> None:
    with served.connect() as wire, served.connect() as other:
        for each, sent in ((wire, post(b"/p", b"x" * 90_000)), (other, chunked(b"/p", b"x" * 90_000))):
            each.sendall(sent)
            heard = b""
            while not heard.endswith(b"x" * 90_000):
                heard += each.recv(65_536)
        kept = [connection._received for connection in served.connections.open]
        assert kept == [b"", b""]


def test_refused_requests_leave_nothing_for_the_collector(served: Served) -> None:
    """Else their bodies would stay until it came by, which is seldom."""

    async def leftovers() -> int:
        return gc.collect()

    def collected() -> int:
        return asyncio.run_coroutine_threadsafe(leftovers(), served.loop).result(10)

    sent = [
        post(b"/p", b"a" * 1000),
        post(b"/refused", b"a" * 1000),
        chunked(b"/p", b"a" * 1000),
        b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"a%d: b\r\n" % number for number in range(101)) + b"\r\n",
        b"GARBAGE\r\n\r\n",
    ]
    for request in sent:
        served.heard(request, half_close=True)
        collected()
        for _ in range(20):
            served.heard(request, half_close=True)
        assert collected() < 100, request[:40]


def test_a_connection_that_comes_in_while_draining_is_closed(new_served: Callable[..., Served]) -> None:
    served = new_served()
    served.connections.is_draining = True
    with served.connect() as wire, contextlib.suppress(ConnectionError):
        assert all_of(wire) == b""


def test_a_full_door_opens_again_for_each_that_leaves(new_served: Callable[..., Served]) -> None:
    """Bursts that come while the last ones are still on their way in are let in too, up to the limit."""
    served = new_served()
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)

        async def open_door() -> Door:
            return Door(listener.dup(), served.connections, 64)

        door = asyncio.run_coroutine_threadsafe(open_door(), served.loop).result(10)
        wires: list[socket.socket] = []
        for size in (40, 5, 10, 30):
            for _ in range(size):
                wires.append(
                    stack.enter_context(socket.create_connection(listener.getsockname(), timeout=10))
                )
            time.sleep(0.002)
        for count in (64, 85):
            for wire in wires[: 21 if count == 85 else 0]:
                wire.close()
            deadline = time.monotonic() + 5
            while len(served.connections.open) < 64 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(served.connections.open) == 64
        wires[-1].sendall(LAST)
        assert answers(all_of(wires[-1])) == [(200, b"GET /last  - ")]
        served.loop.call_soon_threadsafe(door.close)
