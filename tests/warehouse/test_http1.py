"""HTTP/1.1 as it travels: bytes on real sockets to a served warehouse."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote_plus

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apex_pipelines.platform.warehouse import http1
from apex_pipelines.platform.warehouse.http1 import HttpConnection
from tests.warehouse.conftest import PASSWORD, Front

AUTHORIZATION = b"Authorization: Basic %s\r\n" % base64.b64encode(f"default:{PASSWORD}".encode())


@dataclass(frozen=True)
class Reply:
    """One answer, taken apart; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection that sends bytes as they are given."""

    def __init__(self, front: Front, seconds: float = 10) -> None:
        self.socket = socket.create_connection(("127.0.0.1", front.port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            if pause:
                time.sleep(pause)

    def reply(self, *, only_head: bool = False) -> Reply:
        """The next answer."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        status = int(line.split()[1])
        if only_head or status in (100, 204):
            return Reply(status, headers, b"")
        return Reply(status, headers, self._body(headers))

    def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return self._file.read(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return self._file.read()
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            assert self._file.readline() == b"\r\n"
        assert self._file.readline() == b"\r\n"
        return body

    def is_at_end(self) -> bool:
        """Whether the server has closed, with nothing more to read."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def vanish(self, *, reset: bool) -> None:
        """Close as a crashing client does, with a reset, or as one that is stopped."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self.socket.close()


def get(query: str, headers: bytes = b"", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    target = b"/?query=%s" % quote_plus(query).encode()
    head = b"%s %s HTTP/%s\r\nHost: x\r\n%s%s\r\n"
    return head % (method, target, version, AUTHORIZATION, headers)


def post(body: bytes, headers: bytes = b"", target: bytes = b"/", length: int | None = None) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n%s\r\n"
    return head % (target, AUTHORIZATION, len(body) if length is None else length, headers) + body


def chunked(*pieces: bytes, headers: bytes = b"", target: bytes = b"/", trailers: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n%s\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head % (target, AUTHORIZATION, headers) + chunks + b"0\r\n" + trailers + b"\r\n"


def wait_until_idle(front: Front, comment: str, seconds: float = 5) -> None:
    """Until no query with this log_comment runs."""
    running = f"select count() from system.processes where Settings['log_comment'] = '{comment}'"
    deadline = time.monotonic() + seconds
    while front.value(running) != "0":
        assert time.monotonic() < deadline, "the query still runs"
        time.sleep(0.05)


def wait_until_running(front: Front, comment: str) -> None:
    running = f"select count() from system.processes where Settings['log_comment'] = '{comment}'"
    deadline = time.monotonic() + 5
    while front.value(running) == "0":
        assert time.monotonic() < deadline, "the query does not run"
        time.sleep(0.02)


# -- one after another ----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(front: Front) -> None:
    requests = [
        get(f"select {n}")
        if n % 3 == 0
        else post(b"select %d" % n)
        if n % 3 == 1
        else chunked(b"sel", b"ect %d" % n)
        for n in range(30)
    ]
    with Wire(front) as wire:
        wire.send(b"".join(requests))
        assert [wire.reply().body for _ in range(30)] == [b"%d\n" % n for n in range(30)]


def test_pipelined_answers_of_all_kinds_keep_their_borders(front: Front) -> None:
    large = "select number from numbers(400000)"
    with Wire(front) as wire:
        wire.send(
            get(large), get("select nosuch"), get("select 1", method=b"HEAD"), get(large), get("select 2")
        )
        first, error = wire.reply(), wire.reply()
        assert first.headers["transfer-encoding"] == "chunked"
        assert (len(first.body.split()), error.status) == (400_000, 404)
        assert wire.reply(only_head=True).status == 200
        assert wire.reply().body == first.body
        assert wire.reply().body == b"2\n"


def test_a_request_behind_a_running_one_waits(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(get("select sleep(0.5)"))
        time.sleep(0.1)
        wire.send(get("select 5"))
        assert (wire.reply().body, wire.reply().body) == (b"0\n", b"5\n")


@pytest.mark.parametrize(
    ("version", "headers", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"connection: Close\r\n", False),
        (b"1.1", b"Connection: x, close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: close\r\n", False),
    ],
)
@pytest.mark.parametrize("query", ["select 1", "selec"])
def test_connections_are_kept_by_the_rules(
    front: Front, version: bytes, headers: bytes, kept: bool, query: str
) -> None:
    with Wire(front) as wire:
        wire.send(get(query, headers, version))
        reply = wire.reply()
        assert reply.headers["connection"].lower() == ("keep-alive" if kept else "close")
        if kept:
            wire.send(get("select 2", version=version))
            assert wire.reply().body == b"2\n"
        else:
            assert wire.is_at_end()


@pytest.mark.parametrize("headers", [b"", b"Connection: keep-alive\r\n"])
def test_a_large_result_to_http_1_0_ends_with_the_connection(front: Front, headers: bytes) -> None:
    with Wire(front) as wire:
        wire.send(get("select number from numbers(400000)", headers, b"1.0"))
        reply = wire.reply()
        assert "transfer-encoding" not in reply.headers
        assert reply.headers["connection"].lower() == "close"
        assert reply.body.endswith(b"\n399999\n")


@pytest.mark.parametrize("query", ["select 1", "selec", "select number from numbers(400000)"])
def test_head_has_the_headers_and_no_body(front: Front, query: str) -> None:
    with Wire(front) as wire:
        wire.send(get(query))
        full = wire.reply()
        wire.send(get(query, method=b"HEAD"), get("select 2"))
        head = wire.reply(only_head=True)
        assert head.status == full.status
        for name in ("content-type", "content-length", "transfer-encoding", "x-clickhouse-exception-code"):
            assert head.headers.get(name) == full.headers.get(name)
        assert wire.reply().body == b"2\n"


# -- a body on its way ----------------------------------------------------------------------------------

EXPECT = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("expect", [EXPECT, b"expect: 100-Continue\r\n"])
def test_a_body_that_is_wanted_is_asked_for(front: Front, expect: bytes) -> None:
    body = b"select 7"
    with Wire(front) as wire:
        wire.send(post(b"", expect, length=len(body)))
        assert wire.reply().status == 100
        wire.send(body)
        assert wire.reply().body == b"7\n"
        wire.send(post(b"select 8"))
        assert wire.reply().body == b"8\n"


def test_a_body_that_is_there_already_is_not_asked_for(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(post(b"select 7", EXPECT))
        assert wire.reply().body == b"7\n"


def test_http_1_0_is_never_told_to_continue(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(post(b"", EXPECT, length=8).replace(b"HTTP/1.1", b"HTTP/1.0"))
        time.sleep(0.2)
        wire.send(b"select 7")
        assert (wire.reply().status, wire.is_at_end()) == (200, True)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (post(b"", EXPECT, length=9).replace(AUTHORIZATION, b""), 401),
        (post(b"", EXPECT, length=9).replace(AUTHORIZATION, b"Authorization: Basic eDp5\r\n"), 403),
        (post(b"", EXPECT, length=1 << 50), 413),
        (post(b"", EXPECT + b"Content-Encoding: none\r\n", length=9), 501),
        (post(b"", EXPECT, b"/nowhere", length=9), 404),
        (post(b"", EXPECT, length=9).replace(b"POST", b"PUT"), 501),
    ],
    ids=["no credentials", "wrong credentials", "too large", "encoding", "path", "method"],
)
def test_a_body_that_is_refused_is_not_asked_for(front: Front, request_head: bytes, status: int) -> None:
    with Wire(front) as wire:
        wire.send(request_head)
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"].lower()) == (status, "close")
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.is_at_end()


@pytest.mark.parametrize(
    ("credentials", "length", "status"),
    [
        (b"", 12_000_000, 401),
        (b"Authorization: Basic eDp5\r\n", 12_000_000, 403),
        (AUTHORIZATION, 1 << 50, 413),
    ],
)
def test_who_sends_a_large_body_in_vain_still_reads_why(
    front: Front, credentials: bytes, length: int, status: int
) -> None:
    head = post(b"", target=b"/?query=insert+into+x+format+CSV", length=length)
    with Wire(front) as wire:
        wire.send(head.replace(AUTHORIZATION, credentials))
        for _ in range(12):
            wire.send(b"1" * 1_000_000)
        assert wire.reply().status == status
        assert wire.is_at_end()


def test_an_error_in_the_middle_of_an_insert_is_read_too(front: Front) -> None:
    front.value("create or replace table middle (a UInt8) engine = MergeTree order by a")
    with Wire(front) as wire:
        wire.send(post(b"", target=b"/?query=insert+into+middle+format+CSV", length=8_000_000))
        wire.send(b"not a number\n" + b"1\n" * 3_999_993 + b"\n")
        reply = wire.reply()
        assert reply.status >= 400
        assert b"Code: " in reply.body
    assert front.value("select count() from middle") == "0"


ROWS = [b"%d,%s\n" % (n, b"x" * (n % 7)) for n in range(40)]
WHOLE = {
    "chunked query": chunked(b"select sum(numb", b"er) from num", b"bers(10)"),
    "chunked insert": chunked(*ROWS, target=b"/?query=insert+into+cut+format+CSV"),
    "statement and rows together": post(b"insert into cut format CSV\n" + b"".join(ROWS)),
    "length": post(b"select 45"),
    "url": get("select 'x y' || '/%41'"),
}


@pytest.mark.parametrize("name", WHOLE)
@hypothesis_settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_a_request_may_be_cut_anywhere(front: Front, name: str, data: st.DataObject) -> None:
    whole = WHOLE[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    front.value("create or replace table cut (a UInt64, s String) engine = Memory")
    with Wire(front) as wire:
        wire.send(*(whole[a:b] for a, b in itertools.pairwise([0, *cuts, len(whole)])), pause=0.001)
        reply = wire.reply()
        assert reply.status == 200, reply.body
        wire.send(get("select count(), sum(a), sum(length(s)) from cut"))
        stored = wire.reply().body
    sums = b"%d\t%d\t%d\n" % (40, 780, sum(n % 7 for n in range(40)))
    expected = {"length": (b"45\n", b"0\t0\t0\n"), "chunked query": (b"45\n", b"0\t0\t0\n"),
                "url": (b"x y/%41\n", b"0\t0\t0\n")}.get(name, (b"", sums))  # fmt: skip
    assert (reply.body, stored) == expected


def test_a_request_may_come_byte_by_byte(front: Front) -> None:
    with Wire(front) as wire:
        for name in ("chunked query", "length"):
            whole = WHOLE[name]
            wire.send(*(whole[n : n + 1] for n in range(len(whole))), pause=0.0005)
            assert wire.reply().body == b"45\n"


def test_a_trailer_is_no_header(front: Front) -> None:
    """What comes after a body was seen by no proxy that vouches for the head."""
    trailers = b"X-ClickHouse-Format: JSON\r\nX-ClickHouse-Database: system\r\n"
    with Wire(front) as wire:
        wire.send(chunked(b"select currentDatabase()", trailers=trailers))
        assert wire.reply().body == b"default\n"
    bare = chunked(b"select 1", trailers=AUTHORIZATION).replace(AUTHORIZATION, b"", 1)
    with Wire(front) as wire:
        wire.send(bare)
        assert wire.reply().status == 401


@pytest.mark.measures
def test_trailers_without_end_are_refused(front: Front) -> None:
    process = psutil.Process(front.process.pid)
    before = process.memory_info().rss
    with Wire(front) as wire, contextlib.suppress(ConnectionError):
        wire.send(chunked(b"select 1").removesuffix(b"\r\n"))
        for number in range(64):
            wire.send(b"X-%d: %s\r\n" % (number, b"x" * 1_000_000))
        time.sleep(0.3)
    assert process.memory_info().rss - before < 50_000_000


# -- what is no request ---------------------------------------------------------------------------------

HIDDEN = get("select 666")
P = b"POST / HTTP/1.1\r\n" + AUTHORIZATION


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / \r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTX/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GE T / HTTP/1.1\r\n\r\n",
        P + b"Content-Length: -5\r\n\r\n" + HIDDEN,
        P + b"Content-Length: +5\r\n\r\n" + HIDDEN,
        P + b"Content-Length: 0x8\r\n\r\nselect 1" + HIDDEN,
        P + b"Content-Length: 8 8\r\n\r\nselect 1" + HIDDEN,
        P + b"Content-Length: 99999999999999999999999999\r\n\r\n" + HIDDEN,
        P + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + HIDDEN,
        P + b"Content-Length: 8\r\nContent-Length: 3\r\n\r\nselect 1" + HIDDEN,
        P + b"Content-Length: 8, 3\r\n\r\nselect 1" + HIDDEN,
        P + b"Content-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked\r\nContent-Length: 8\r\n\r\n"
        b"8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: xchunked\r\n\r\n8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked, identity\r\n\r\n8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding : chunked\r\n\r\n8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding:\x0bchunked\r\n\r\n8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked\r\n\r\n-8\r\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked\r\n\r\n8;\nselect 1\r\n0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked\r\n\r\n8\r\nselect 1XX0\r\n\r\n" + HIDDEN,
        P + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nselect 1\r\n" + HIDDEN,
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_hides_no_other(front: Front, data: bytes) -> None:
    with Wire(front) as wire:
        wire.send(data)
        wire.socket.shutdown(socket.SHUT_WR)
        received = wire._file.read()
    assert received == b"" or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), received[:300]
    assert b"666" not in received
    assert received.count(b"HTTP/1.1 ") <= 1
    assert front.value("select 1") == "1"


def test_a_refusal_says_why_and_closes(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(b"NONSENSE\r\n\r\n")
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "Close")
        assert b"HTTP/1" in reply.body
        assert wire.is_at_end()


@pytest.mark.parametrize("what", ["one header", "many headers", "target", "no end"])
def test_a_head_beyond_the_limit_is_refused(front: Front, what: str) -> None:
    size = 2 * http1.MAX_HEAD_BYTES
    filling = {
        "one header": b"GET / HTTP/1.1\r\nX: " + b"x" * size + b"\r\n\r\n",
        "many headers": b"GET / HTTP/1.1\r\n"
        + b"".join(b"X-%d: y\r\n" % n for n in range(size // 10))
        + b"\r\n",
        "target": b"GET /?query=" + b"1" * size + b" HTTP/1.1\r\n\r\n",
        "no end": b"GET / HTTP/1.1\r\nX: " + b"x" * size,
    }[what]
    with Wire(front) as wire:
        wire.send(filling)
        assert wire.reply().status == 431
        assert wire.is_at_end()


def test_a_large_head_within_the_limit_is_read(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(get("select length('" + "x" * 200_000 + "')", b"X: " + b"x" * 500_000 + b"\r\n"))
        assert wire.reply().body == b"200000\n"


def test_an_offer_to_upgrade_is_declined_by_answering(front: Front) -> None:
    """As `curl --http2` sends it; a server that does not want to goes on in HTTP/1.1 (RFC 9110, 7.8)."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    with Wire(front) as wire:
        wire.send(get("select 1", offer))
        assert wire.reply().body == b"1\n"
        wire.send(post(b"select 2", offer))
        assert wire.reply().body == b"2\n"
        wire.send(get("select 3"))
        assert wire.reply().body == b"3\n"


# -- names and values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "injection",
    [
        "a\r\nX-Injected: 1",
        "a\nX-Injected: 1",
        "a\r\n\r\nHTTP/1.1 200 OK\r\n",
        "a\u2028b",
        "a\x85b",
        "\x0b\x0c\x00",
        "",
    ],
)
def test_a_query_id_ends_no_header(front: Front, injection: str) -> None:
    target = b"/?query_id=%s" % quote_plus(injection).encode()
    with Wire(front) as wire:
        for _ in range(2):
            wire.send(post(b"select 1", target=target))
            reply = wire.reply()
            assert (reply.status, reply.body) == (200, b"1\n")
            assert "x-injected" not in reply.headers
            assert "x-clickhouse-query-id" in reply.headers


def test_a_time_zone_ends_no_header(front: Front) -> None:
    with Wire(front) as wire:
        wire.send(post(b"select 1", target=b"/?session_timezone=UTC%0d%0aX-Injected:1"))
        reply = wire.reply()
        assert "x-injected" not in reply.headers
        assert reply.status >= 400


PROGRESS = b"/?query=select+1&send_progress_in_http_headers=1&http_headers_progress_interval_ms="


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        (b"/?query=select%201", 200, b"1\n"),
        (b"/?query=select+'a%2Bb%26%3d'", 200, b"a+b&=\n"),
        (b"/?query=select+'%C3%A9'", 200, b"\xc3\xa9\n"),
        (b"/?query=select+'%ff%fe'", 200, b"\xff\xfe\n"),
        (b"/?query=select+length('%ff')", 200, b"1\n"),
        (b"/?query=select+hex('%zz%2')", 200, b"257A7A2532\n"),
        (b"/?query=select+hex('%F0%9F%98%80')", 200, b"F09F9880\n"),
        (b"/?query=select+hex({x:String})&param_x=%ff%00", 200, None),
        (b"/?query=select+hex({x:String})&param_x=a%ff", 200, b"61FF\n"),
        (b"/?query=select+1;select+2", 400, None),
        (b"/?query=select+1&database=%ff", 404, None),
        (b"/?query=select+1&%ff=1", 404, None),
        (b"/?query=select+1&max_threads=%ff", None, None),
        (b"/?query=select+1&default_format=%ff", 404, None),
        (b"/?query=select+1&query_id=%ff", 200, b"1\n"),
        (b"/?query=select+1&session_id=%ff", 200, b"1\n"),
        (b"/?query=%ff", None, None),
        (b"/?query=select+*+from+`%ff`", 404, None),
        (b"/%3fquery=select+1", 404, None),
        (b"/?", 200, b"Ok.\n"),
        (b"/?query=select+1#x", None, None),
        (b"/?query=select+1&query=select+2", None, None),
        (b"/?query=select+1&session_timeout=" + b"9" * 5000, 500, None),
        (b"/?query=select+1&max_query_size=" + b"9" * 5000, None, None),
        (PROGRESS + b"9" * 5000, None, None),
        (b"/?query=select+1&session_timeout=%D9%A1", None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("user", ["default", "nobody%ff"])
def test_parameters_may_hold_any_bytes(
    front: Front, target: bytes, status: int | None, body: bytes | None, user: str
) -> None:
    head = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n"
    credentials = AUTHORIZATION
    if user != "default":
        if target in (b"/?", b"/%3fquery=select+1"):
            return
        target, credentials, status, body = target.replace(b"?", b"?user=nobody%ff&", 1), b"", 403, None
    with Wire(front) as wire:
        wire.send(head % (target, credentials))
        reply = wire.reply()
        assert b"internal error" not in reply.body
        assert status is None or reply.status == status, reply.body
        assert body is None or reply.body == body
        wire.send(get("select 9"))
        assert wire.reply().body == b"9\n"


# -- clients that are slow, idle or gone ----------------------------------------------------------------


@pytest.mark.measures
def test_slow_and_silent_clients_keep_nobody_from_being_served(front: Front) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(front)) for _ in range(40)]
        for number, wire in enumerate(wires):
            wire.send(get("select 1")[: number * 3])
        with httpx.Client(auth=("default", PASSWORD), timeout=5) as client:
            started = time.monotonic()
            for number in range(20):
                assert client.post(front.url, content=f"select {number}").text == f"{number}\n"
            assert time.monotonic() - started < 2
        # The slow ones are served too, when they come to their end.
        for number, wire in enumerate(wires):
            wire.send(get("select 1")[number * 3 :])
        assert all(wire.reply().body == b"1\n" for wire in wires)


@pytest.mark.measures
def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.5)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        connection = HttpConnection(theirs)
        head = pool.submit(_next_head_or_refusal, connection)
        started = time.monotonic()
        while not head.done() and time.monotonic() - started < 3:
            ours.send(b"X" if time.monotonic() - started > 0.1 else b"GET / HTTP/1.1\r\nX: ")
            time.sleep(0.05)
        assert head.result(0) is None
        assert time.monotonic() - started < 1.5


@pytest.mark.measures
def test_a_kept_connection_has_its_time_from_the_first_byte_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was idle almost until the end, and then sends a head in two pieces, is served."""
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(http1, "IDLE_SECONDS", 0.6)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        head = pool.submit(_next_head_or_refusal, HttpConnection(theirs))
        time.sleep(0.5)
        ours.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.3)
        ours.send(b"Host: x\r\n\r\n")
        assert head.result(5) is not None


def _next_head_or_refusal(connection: HttpConnection) -> http1.Head | None:
    with contextlib.suppress(http1.BadRequest):
        return connection.next_head()
    return None


LONG = "select count() from numbers(1000000000000) where sipHash64(number) = 1"
STREAM = "select number from numbers(1000000000000)"


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("query", [LONG, STREAM, STREAM + " format Native", STREAM + " format JSON"])
def test_a_query_ends_when_its_client_disappears(front: Front, query: str, reset: bool) -> None:
    comment = f"gone {reset} {abs(hash(query))}"
    wire = Wire(front)
    text, _, format_name = query.partition(" format ")
    clause = f"settings log_comment = '{comment}', max_threads = 1 format {format_name or 'TSV'}"
    wire.send(post(f"{text} {clause}".encode()))
    wait_until_running(front, comment)
    if query != LONG:
        assert wire.socket.recv(1000)
    wire.vanish(reset=reset)
    wait_until_idle(front, comment)


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("framing", ["length", "chunked", "in the middle of a chunk"])
def test_an_insert_whose_client_disappears_inserts_nothing(front: Front, reset: bool, framing: str) -> None:
    front.value("create or replace table half (a UInt64) engine = MergeTree order by a")
    target, rows = b"/?query=insert+into+half+format+CSV", b"1\n" * 200_000
    wire = Wire(front)
    if framing == "length":
        wire.send(post(rows, target=target, length=len(rows) + 1))
    else:
        whole = chunked(rows, target=target)
        wire.send(whole.removesuffix(b"0\r\n\r\n") if framing == "chunked" else whole[:-100])
    time.sleep(0.2)
    wire.vanish(reset=reset)
    deadline = time.monotonic() + 5
    while "insert" in front.value(
        "select arrayStringConcat(groupArray(query)) from system.processes where query ilike 'insert%'"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    assert front.value("select count() from half") == "0"


@pytest.mark.parametrize("format_name", ["TabSeparated", "Native", "JSON"])
@pytest.mark.measures
def test_clients_that_read_nothing_hold_no_memory_and_block_nobody(front: Front, format_name: str) -> None:
    process = psutil.Process(front.process.pid)
    query = "select number, repeat('x', 1000) from numbers(100000000) settings log_comment = 'unread'"
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(front)) for _ in range(4)]
        for wire in wires:
            wire.send(post(f"{query} format {format_name}".encode()))
        time.sleep(1)
        before = process.memory_info().rss
        started = time.monotonic()
        for number in range(20):
            assert front.value(f"select {number}") == str(number)
        assert (time.monotonic() - started) / 20 < 0.25
        time.sleep(0.7)
        # The allocator's own ups and downs reach 100 MB; without a bound it would be gigabytes.
        assert process.memory_info().rss - before < 300_000_000
        wires[0].socket.settimeout(5)
        assert wires[0].socket.recv(100_000)
    wait_until_idle(front, "unread", 10)


# -- many at once ---------------------------------------------------------------------------------------


@pytest.mark.measures
def test_32_clients_at_once_get_their_own_sums(front: Front) -> None:
    seconds: list[float] = []

    def work(worker: int) -> None:
        with Wire(front, 30) as wire:
            for step in range(25):
                n = 1000 * worker + step + 2
                query = f"select {worker}, {step}, sum(number), sum(number * number) from numbers({n})"
                started = time.monotonic()
                wire.send(get(query) if step % 2 else post(query.encode()))
                reply = wire.reply()
                seconds.append(time.monotonic() - started)
                sums = (n - 1) * n // 2, (n - 1) * n * (2 * n - 1) // 6
                assert reply.body == b"%d\t%d\t%d\t%d\n" % (worker, step, *sums)

    with Wire(front) as long, ThreadPoolExecutor(32) as pool:
        long.send(post(f"{LONG} settings log_comment = 'long', max_threads = 1".encode()))
        wait_until_running(front, "long")
        list(pool.map(work, range(32)))
        assert (
            front.value("select count() from system.processes where Settings['log_comment'] = 'long'") == "1"
        )
    assert len(seconds) == 32 * 25
    assert statistics.median(seconds) < 0.5
    wait_until_idle(front, "long")


def test_inserts_of_many_clients_at_once_lose_and_double_nothing(front: Front) -> None:
    front.value("create or replace table many (worker UInt32, a UInt64) engine = MergeTree order by a")

    def work(worker: int) -> None:
        with Wire(front, 30) as wire:
            for step in range(3):
                rows = b"".join(b"%d,%d\n" % (worker, step * 1000 + n) for n in range(1000))
                wire.send(chunked(rows[:500], rows[500:], target=b"/?query=insert+into+many+format+CSV"))
                assert wire.reply().status == 200

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    query = "select count(), uniqExact(worker, a), sum(a) from many"
    assert front.value(query) == f"48000\t48000\t{16 * sum(range(3000))}"


@pytest.fixture
def many_files() -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.measures
def test_300_idle_connections_do_no_harm(front: Front, many_files: None) -> None:
    process = psutil.Process(front.process.pid)
    threads, before = process.num_threads(), process.memory_info().rss
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(front)) for _ in range(300)]
        for wire in wires[::2]:
            wire.send(get("select 1"))
            assert wire.reply().body == b"1\n"
        started = time.monotonic()
        for number in range(20):
            assert front.value(f"select {number}") == str(number)
        assert (time.monotonic() - started) / 20 < 0.25
        assert process.memory_info().rss - before < 200_000_000
        for wire in wires:
            wire.send(get("select 2"))
        assert all(wire.reply().body == b"2\n" for wire in wires)
    deadline = time.monotonic() + 5
    while process.num_threads() > threads + 80:
        assert time.monotonic() < deadline, "the threads of closed connections are still there"
        time.sleep(0.05)


def test_descriptors_and_threads_are_given_back(front: Front) -> None:
    process = psutil.Process(front.process.pid)

    def strain() -> None:
        for number in range(30):
            wire = Wire(front)
            wire.send([b"", b"GET", get(STREAM), post(b"", length=9), get("select 1"), b"\0"][number % 6])
            if number % 6 == 2:
                wire.socket.recv(1)
            wire.vanish(reset=bool(number % 2))

    strain()
    time.sleep(1)
    before = process.num_fds()
    strain()
    deadline = time.monotonic() + 8
    while process.num_fds() > before + 5:
        assert time.monotonic() < deadline, f"{process.num_fds()} descriptors, {before} before"
        time.sleep(0.1)


def test_a_flood_of_garbage_leaves_the_warehouse_standing(front: Front) -> None:
    for _ in range(60):
        with Wire(front) as wire, contextlib.suppress(ConnectionError):
            wire.send(os.urandom(2000))
            wire.socket.shutdown(socket.SHUT_WR)
            wire._file.read()
    assert threading.active_count() < 50
    assert front.value("select 1") == "1"
