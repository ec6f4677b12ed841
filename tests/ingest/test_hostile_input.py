"""Hostile input: each kind has its documented answer, the worker lives, and its memory stays flat."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from apex_pipelines.settings import Settings
from tests.ingest.conftest import Account, Api, Neighbour, event
from tests.ingest.spool_files import spooled
from tests.ingest.test_answers import NDJSON

TRACK, BATCH = "/api/usage/track", "/api/usage/batch"
GZIP = {"content-encoding": "gzip"}


def raw_event(quantity: str = "1", more: str = "") -> bytes:
    return f'{{"metric_type": "impressions", "quantity": {quantity}{more}}}'.encode()


# Body, headers, status, code.
BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (raw_event(more=',"x":' + "[" * 400_000 + "]" * 400_000), {}, 400, "invalid_json"),
    (raw_event(more=',"x":' + '{"a":' * 150_000 + "1" + "}" * 150_000), {}, 400, "invalid_json"),
    (raw_event("NaN"), {}, 400, "invalid_json"),
    (raw_event("Infinity"), {}, 400, "invalid_json"),
    (raw_event("-Infinity"), {}, 400, "invalid_json"),
    (raw_event('"nan"'), {}, 422, "invalid_quantity"),
    (raw_event('"sNaN123"'), {}, 422, "invalid_quantity"),
    (raw_event("9" * 1_000_000), {}, 422, "invalid_quantity"),
    (raw_event('"' + "9" * 1_000_000 + '"'), {}, 422, "quantity_too_large"),
    (raw_event("0." + "1" * 1_000_000), {}, 422, "quantity_too_precise"),
    (raw_event("1e999"), {}, 422, "quantity_too_large"),
    (raw_event("9223372036854775808"), {}, 422, "quantity_too_large"),
    (raw_event(more=',"event_id":"a\\u0000b"'), {}, 422, "invalid_event_id"),
    (raw_event(more=',"metadata":{"a":NaN}'), {}, 400, "invalid_json"),
    (raw_event(more=',"timestamp":1e400'), {}, 422, "invalid_timestamp"),
    (raw_event("1e999999999999999999999"), {}, 422, "invalid_quantity"),
    (raw_event("1e-99999999999"), {}, 422, "quantity_too_precise"),
    (raw_event(more=',"metadata":{"a":1e400}'), {}, 422, "invalid_metadata"),
    (raw_event(more=f',"metadata":{{"a":{"9" * 5000}}}'), {}, 422, "invalid_metadata"),
    (raw_event(more=',"timestamp":"0001-01-01T00:00:00+23:59"'), {}, 422, "too_late"),
    (raw_event(more=',"timestamp":"9999-12-31T23:59:59-23:59"'), {}, 422, "too_early"),
    (b'{"metric_type": "\xff\xfe", "quantity": 1}', {}, 400, "invalid_encoding"),
    (b'{"metric_type": "\xed\xa0\x80", "quantity": 1}', {}, 400, "invalid_encoding"),
    (raw_event(more=',"metadata":{"a":"\\ud800 lone"}'), {}, 400, "invalid_json"),
    (raw_event(more=',"api_key":"apx_\\udfff lone"'), {}, 400, "invalid_json"),
    (b"\xef\xbb\xbf" + raw_event(), {}, 400, "invalid_json"),
    (raw_event().decode().encode("utf-16"), {}, 400, "invalid_json"),
    (gzip.compress(b" " * 100_000_000), GZIP, 413, "body_too_large"),
    (gzip.compress(gzip.compress(b" " * 100_000_000)), GZIP, 400, "invalid_json"),
    (gzip.compress(b"") * 50_000, GZIP, 400, "broken_gzip"),
    (gzip.compress(b" " * 20_000) * 100, GZIP, 413, "body_too_large"),
    (gzip.compress(raw_event())[:-4], GZIP, 400, "broken_gzip"),
    (gzip.compress(raw_event()) + b"more", GZIP, 400, "broken_gzip"),
    (raw_event(), {"content-encoding": "gzip, gzip"}, 415, "unsupported_encoding"),
    (raw_event(), {"content-encoding": "deflate"}, 415, "unsupported_encoding"),
    (raw_event(), {"content-type": "image/png"}, 415, "unsupported_media_type"),
    (raw_event(), {"content-type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
    (raw_event(), {"content-type": "application/x-ndjson"}, 415, "unsupported_media_type"),
    (raw_event(), {"content-type": "application/json; charset=utf-16"}, 415, "unsupported_charset"),
    (b" " * 1_048_577, {}, 413, "body_too_large"),
]


@pytest.fixture
def ready(api: Api, account: Account) -> tuple[Api, Account]:
    """An API that has served once, so that what it loads at first is loaded."""
    httpx.post(f"{api.url}{TRACK}", json=event(), headers=account.bearer)
    return api, account


@pytest.mark.measures
def test_each_kind_has_its_answer_and_memory_stays_flat_and_nobody_else_notices(
    ready: tuple[Api, Account], neighbour_of: Callable[[Api], Neighbour], settings: Settings
) -> None:
    api, account = ready
    with (
        httpx.Client(base_url=api.url, timeout=20, headers=account.bearer) as http,
        neighbour_of(api) as neighbour,
    ):
        before = 0
        for number in range(6):
            for body, headers, status, code in BODIES:
                answer = http.post(TRACK, content=body, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body[:60]
                assert len(answer.content) < 10_000, body[:60]
            if number == 1:
                before = api.resident()  # the first rounds warm the allocator up
        assert api.resident() - before < 16_000_000
        pids = api.worker_pids()
        assert http.post(TRACK, json=event(event_id="after")).status_code == 200
        assert api.worker_pids() == pids
    neighbour.assert_unharmed()
    rows = [row.event_id for row in spooled(settings.spool_dir) if row.customer_id == account.customer_id]
    assert rows == ["evt-1", "after"]
    assert "Traceback" not in api.log.read_text()


def test_careless_content_types_are_taken_for_json(http: httpx.Client, account: Account) -> None:
    for sent in (None, "application/json; charset=UTF-8", "application/x-www-form-urlencoded", "text/plain",
                 "APPLICATION/JSON", 'application/json; charset="utf-8"'):  # fmt: skip
        headers = dict(account.bearer) if sent is None else {**account.bearer, "content-type": sent}
        assert http.post(TRACK, content=raw_event(), headers=headers).status_code == 200, sent


def test_fields_that_nobody_knows_are_ignored(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    body = {
        **event(),
        "__proto__": {"admin": True},
        "customer_id": "cus_other",
        "loaded_at": 0,
        "x" * 5000: 1,
    }
    assert http.post(TRACK, json=body, headers=account.bearer).status_code == 200
    (row,) = spooled(settings.spool_dir)
    assert (row.customer_id, row.metadata) == (account.customer_id, "{}")


def test_a_batch_of_hostile_events_gets_a_result_each(http: httpx.Client, account: Account) -> None:
    lines = [
        raw_event(more=',"x":' + "[" * 10_000),
        raw_event("1e999999999"),
        b"\xff",
        raw_event(more=',"metadata":{"a":"\\ud800 lone"}'),
        b"null",
        b"[]",
        raw_event("1", ',"event_id":"good"'),
    ]
    answer = http.post(
        BATCH, content=b"\n".join(lines), headers={**account.bearer, "content-type": "application/x-ndjson"}
    )
    assert answer.status_code == 200
    assert [result["status"] for result in answer.json()["results"]] == ["rejected"] * 6 + ["accepted"]


def _sent(api: Api, head: str, body: bytes = b"", chunks: int = 0) -> tuple[bytes, int]:
    """What a raw connection hears, and how many bytes it could send before that."""
    with socket.create_connection(("127.0.0.1", api.settings.api_port), timeout=15) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        sent = 0
        connection.settimeout(0.05)
        heard = b""
        for _ in range(chunks):
            try:
                connection.settimeout(5)
                sent += connection.send(body)
                connection.settimeout(0.001)
                heard += connection.recv(65_536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if heard:
                break
        connection.settimeout(15)
        try:
            while b"\r\n\r\n" not in heard and (piece := connection.recv(65_536)):
                heard += piece
        except ConnectionError:
            pass
        return heard, sent


@pytest.mark.measures
def test_a_gigabyte_is_refused_before_it_is_sent(
    ready: tuple[Api, Account], neighbour_of: Callable[[Api], Neighbour]
) -> None:
    api, account = ready
    before = api.resident()
    with neighbour_of(api) as neighbour:
        for _ in range(10):
            send_gigabytes(api, account)
        assert api.resident() - before < 16_000_000
    neighbour.assert_unharmed()


def send_gigabytes(api: Api, account: Account) -> None:
    head = (
        f"POST {BATCH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
        "Content-Type: application/json\r\n"
    )
    length = "Content-Length: 1000000000"
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    begun = time.monotonic()
    # One that waits for permission, one that waits for nothing, one that just sends, one that never says
    # how much there will be.
    for more, body, chunks in (
        (f"{length}\r\nExpect: 100-continue", b"", 0),
        (length, b"", 0),
        (length, b" " * 65_536, 16_000),
        ("Transfer-Encoding: chunked", chunk, 16_000),
    ):
        heard, sent = _sent(api, head + more, body, chunks)
        assert heard.startswith(b"HTTP/1.1 413"), (heard, sent)
        assert b"100 Continue" not in heard
        assert sent < 64_000_000
    assert time.monotonic() - begun < 10


def test_more_or_less_than_was_announced_is_no_other_clients_request(
    ready: tuple[Api, Account], settings: Settings
) -> None:
    """What follows a body is taken for the next request of the same connection, and refused as one."""
    api, account = ready
    body = raw_event(more=',"event_id":"exact"')
    head = f"POST {TRACK} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
    with api.connect() as wire:
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"and more\r\n\r\n")
        heard = b""
        while piece := wire.recv(4096):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 200")
    assert heard.count(b"HTTP/1.1 4") == 1
    with api.connect() as wire:
        wire.sendall(f"{head}Content-Length: {len(body) - 1}\r\n\r\n".encode() + body)
        assert b"invalid_json" in wire.recv(4096)
    # Two lengths that disagree are how requests are smuggled past a proxy: no answer is taken from either.
    smuggled = f"{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with api.connect() as wire:
        wire.sendall(smuggled.encode() + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.settimeout(2)
        heard = b""
        try:
            while piece := wire.recv(4096):
                heard += piece
        except (TimeoutError, ConnectionError):
            pass
    assert b" 200 OK" not in heard.split(b"\r\n", 1)[0]
    assert [row.event_id for row in spooled(settings.spool_dir)] == ["evt-1", "exact"]


@pytest.mark.measures
def test_many_requests_in_one_go_are_answered_in_their_order(
    ready: tuple[Api, Account], neighbour_of: Callable[[Api], Neighbour], settings: Settings
) -> None:
    api, account = ready
    requests = b""
    for number in range(2_000):
        body = raw_event(more=f',"event_id":"pipelined-{number}"')
        requests += (
            f"POST {TRACK} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
    before = api.resident()
    with neighbour_of(api) as neighbour, api.connect() as wire:
        sender = threading.Thread(target=wire.sendall, args=(requests,))
        sender.start()
        heard = b""
        while heard.count(b"HTTP/1.1 200") < 2_000 and (piece := wire.recv(65_536)):
            heard += piece
        sender.join(10)
        assert api.resident() - before < 16_000_000
    neighbour.assert_unharmed()
    answered = re.findall(rb'"event_id":"(pipelined-[0-9]+)"', heard)
    assert answered == [b"pipelined-%d" % number for number in range(2_000)]


def test_headers_that_nobody_should_send_harm_nothing(ready: tuple[Api, Account]) -> None:
    api, account = ready
    with httpx.Client(base_url=api.url, timeout=20) as http:
        for value in (
            b"Bearer \xff\xfe",
            "Bearer apx_é".encode(),
            b"Bearer " + b"a" * 8000,
            b"Basic eDp5",
            b"Bearer",
        ):
            answer = http.post(TRACK, content=raw_event(), headers=[(b"authorization", value)])
            assert answer.status_code == 401, value[:20]
            assert answer.headers["www-authenticate"] == 'Bearer realm="apex"'
        odd = {**account.bearer, "content-type": "x" * 8000}
        assert http.post(TRACK, content=raw_event(), headers=odd).status_code == 415
        for path in (
            "/" + "a" * 8000,
            "/%00",
            "/api/usage/track/",
            "/API/usage/track",
            "//api/usage/track",
            "/..%2f",
        ):
            answer = http.get(path)
            assert answer.status_code == 404, path[:20]
            assert len(answer.content) < 1000
    for head in (
        "POST /api/usage/track HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
        "POST /api/usage/track HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999",
        "POST /api/usage/track HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2",
        "GET /health HTTP/9.9",
        "GARBAGE",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + "x" * 1_000_000,
        "GET /health HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(f"a{i}: b" for i in range(5000)),
    ):
        heard, _ = _sent(api, head)
        assert not heard or heard.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), heard[:80]
    assert httpx.get(f"{api.url}/health").status_code == 200


@pytest.mark.measures
def test_one_clients_worst_holds_up_nobody(new_api: Callable[..., Api], account: Account) -> None:
    """The event loop is never kept for long: what costs most is bounded."""
    api = new_api()
    with httpx.Client(base_url=api.url, timeout=20, headers=account.bearer) as http:
        http.get("/health")
        worst = [
            (BATCH, json.dumps([event(quantity="z", metadata={"a": "x" * 900})] * 1000).encode(), {}),
            (BATCH, b"[" + b"{}," * 340_000 + b"{}]", {}),
            (BATCH, gzip.compress(b"") * 50_000, GZIP),
            (TRACK, gzip.compress(b" " * 100_000_000), GZIP),
        ]
        for path, body, headers in worst:
            begun = time.monotonic()
            assert http.post(path, content=body, headers=headers).status_code in (200, 400, 413)
            assert time.monotonic() - begun < 2, body[:20]  # measured 0.05; the machine may be busy


def test_without_a_good_key_no_event_is_looked_at(http: httpx.Client) -> None:
    """However little a client has to send for it, and wherever it puts its key."""
    many = b'{"events":[' + b"{}," * 300_000 + b'{}],"api_key":"apx_live_nobody"}'
    stranger = {"authorization": "Bearer apx_live_nobody"}
    for path, body, headers, code in (
        (TRACK, b"{", stranger, "unknown_api_key"),
        (TRACK, raw_event('"z"'), stranger, "unknown_api_key"),
        (TRACK, raw_event('"z"'), {}, "missing_api_key"),
        (BATCH, gzip.compress(many), GZIP, "unknown_api_key"),
        (BATCH, b"[" + b"{}," * 300_000 + b"{}]", {}, "missing_api_key"),
        (BATCH, b"x\n" * 500_000, NDJSON, "missing_api_key"),
    ):
        answer = http.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), body[:20]


def test_lines_are_counted_before_they_are_looked_at(http: httpx.Client, account: Account) -> None:
    headers = {**account.bearer, **NDJSON}
    line = raw_event(more=',"event_id":"one"')
    assert http.post(BATCH, content=b"\r\n" * 1_000 + line, headers=headers).json()["accepted"] == 1
    for body, what in ((b"\n" * 1_000_000, "1000000 lines"), (line + b"\nx" * 1_000, "1001 events")):
        answer = http.post(BATCH, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_events")
        assert what in answer.json()["error"]["message"]
