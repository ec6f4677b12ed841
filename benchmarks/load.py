"""Load on an HTTP server from a process of its own: as fast as it answers, or so many requests a second.

Belongs here: sending events over kept connections and timing the answers. Does not belong here: which server,
and what its figures mean (the benchmarks).

Each connection is a bare protocol on uvloop and reads no more of an answer than its length, so that the
clients take as little as they can of the cores that they share with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes
    ----------
    batch : int
        Events a request; 0 sends single events to `/api/usage/track`.
    rate : float
        Requests a second, sent on time whether the earlier ones are answered or not; 0 sends the next request
        of a connection when the last one is answered.
    prefix : str
        Starts each event id, so that no two runs share one.
    timestamp : str
        Event time, as sent.
    """

    url: str
    key: str
    prefix: str
    timestamp: str
    seconds: float
    connections: int = 32
    batch: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came back: answers by status, events acknowledged, latencies in milliseconds.

    With a rate the latency counts from when the request was due, so that a stall is seen by all that it held.
    """

    requests: int
    seconds: float
    statuses: dict[str, int]
    events: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


def run(load: Load) -> Result:
    """Send `load` from a second process.

    Raises
    ------
    AssertionError
        If any answer was not 200, or not all events of a batch were taken.
    """
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load))]
    timeout = load.seconds + 2 * _DRAIN_SECONDS
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = Result(**json.loads(done.stdout))
    assert set(result.statuses) == {"200"}, result
    return result


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, on_answer: Callable[[_Connection, int, bytes], None]) -> None:
        self._on_answer = on_answer
        self._received = b""
        self._transport: asyncio.WriteTransport
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._received, 0, head_end)
        assert length is not None, self._received[:200]
        end = head_end + 4 + int(length[1])
        if len(self._received) < end:
            return
        status, body = int(self._received[9:12]), self._received[head_end + 4 : end]
        self._received = self._received[end:]
        self._on_answer(self, status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            raise exc

    def close(self) -> None:
        self._transport.close()


class _Generator:
    """Sends one load and keeps the figures."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._request = _single(load) if load.batch == 0 else _batch(load)
        self._number = 0
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._events = 0
        self._in_flight = 0
        # In turn, so that none is idle for so long that the server closes it.
        self._idle: deque[_Connection] = deque()
        self._overdue: deque[float] = deque()
        self._ended = self._loop.create_future()
        self._is_over = False

    async def run(self) -> Result:
        load = self._load
        parts = urlsplit(load.url)
        connections = []
        for _ in range(load.connections):
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self._answered), parts.hostname, parts.port
            )
            connections.append(connection)
        began = time.perf_counter()
        if load.rate:
            self._idle.extend(connections)
            for number in range(round(load.rate * load.seconds)):
                due = began + number / load.rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                self._overdue.append(due)
                self._send_due()
            self._is_over = True
        else:
            self._loop.call_later(load.seconds, self._stop)
            for connection in connections:
                self._next(connection, began)
        await asyncio.wait_for(self._ended, load.seconds + _DRAIN_SECONDS)
        took = time.perf_counter() - began
        for connection in connections:
            connection.close()
        ordered = sorted(self._latencies)
        return Result(
            requests=len(ordered),
            seconds=took,
            statuses=dict(self._statuses),
            events=self._events,
            p50_ms=ordered[len(ordered) // 2] * 1e3,
            p99_ms=ordered[int(len(ordered) * 0.99)] * 1e3,
            max_ms=ordered[-1] * 1e3,
        )

    def _stop(self) -> None:
        self._is_over = True

    def _next(self, connection: _Connection, due: float) -> None:
        self._in_flight += 1
        connection.send(self._request(self._number), due)
        self._number += 1

    def _send_due(self) -> None:
        while self._overdue and self._idle:
            self._next(self._idle.popleft(), self._overdue.popleft())

    def _answered(self, connection: _Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        self._latencies.append(now - connection.due)
        self._statuses[str(status)] += 1
        self._in_flight -= 1
        if status == 200:
            assert b'"rejected":0' in body or not self._load.batch, body[:500]
            self._events += self._load.batch or 1
        if self._load.rate:
            self._idle.append(connection)
            self._send_due()
        elif not self._is_over:
            self._next(connection, now)
        if self._is_over and self._in_flight == 0 and not self._overdue and not self._ended.done():
            self._ended.set_result(None)


def _event(load: Load) -> bytes:
    event = {
        "event_id": f"{load.prefix}-%d",
        "metric_type": "impressions",
        "quantity": 1,
        "timestamp": load.timestamp,
        "metadata": {"platform": "ios", "sdk_version": "4.2.0", "network": "admob", "country": "DE"},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def _head(load: Load, path: str, body_length: int) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {urlsplit(load.url).netloc}",
        f"authorization: Bearer {load.key}",
        "content-type: application/json",
        f"content-length: {body_length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# Numbers start here, so that all bodies have one length and the head is made once.
_FIRST = 10_000_000_000


def _single(load: Load) -> Callable[[int], bytes]:
    event = _event(load)
    template = _head(load, "/api/usage/track", len(event % _FIRST)).replace(b"%", b"%%") + event
    return lambda number: template % (_FIRST + number)


def _batch(load: Load) -> Callable[[int], bytes]:
    size = load.batch
    body = b"[" + b",".join([_event(load)] * size) + b"]"
    length = len(body % ((_FIRST,) * size))
    template = _head(load, "/api/usage/batch", length).replace(b"%", b"%%") + body

    def request(number: int) -> bytes:
        first = _FIRST + number * size
        return template % tuple(range(first, first + size))

    return request


async def _main(load: Load) -> Result:
    return await _Generator(load).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", help="a Load as JSON")
    print(json.dumps(asdict(uvloop.run(_main(Load(**json.loads(parser.parse_args().load)))))))
