"""A real HTTP server that answers as the ingest API documents, and fails on demand in ways networks do."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import msgspec


class Fault(Enum):
    """What happens to one request instead of a clean answer."""

    NONE = auto()
    DROP_BEFORE = auto()  # the connection breaks; nothing was taken
    DROP_AFTER = auto()  # taken, but the answer is lost
    HALF_ANSWER = auto()  # taken, and the answer breaks off
    BUSY = auto()  # 503 with Retry-After
    TOO_MANY = auto()  # 429 with Retry-After
    ERROR = auto()  # 500 without Retry-After
    SILENT = auto()  # nothing is said while the client waits
    TOO_SLOW = auto()  # 408
    TOO_LARGE = auto()  # 413
    GARBAGE = auto()  # 200 that is no JSON
    SHORT = auto()  # 200 with a result too few
    LIST = auto()  # 200 with JSON of another shape, in three ways
    NULL = auto()
    NULL_RESULTS = auto()
    REFUSE_KEY = auto()
    REFUSE_REQUEST = auto()


@dataclass
class FaultServer:
    """Events by id, the first accepted of each; `fault` decides about each request by its number from 1."""

    fault: Callable[[int], Fault] = lambda _number: Fault.NONE
    reject: Callable[[dict[str, Any]], str | None] = lambda _event: None
    retry_after: str = "0.2"
    delay_seconds: float = 0.0
    port: int = 0
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrivals: list[str] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)  # of what was taken
    request_times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    connections: int = 0
    requests: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultServer:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests += 1
        self.request_times.append(self._loop.time())
        self.keys.add(next(line.split()[-1] for line in head if line.lower().startswith("authorization")))
        fault = self.fault(self.requests)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if fault is Fault.SILENT:
            await reader.read()
            return False
        if fault is Fault.DROP_BEFORE:
            writer.transport.abort()
            return False
        refused = {
            Fault.BUSY: (503, "busy"),
            Fault.TOO_MANY: (429, "rate_limited"),
            Fault.ERROR: (500, "internal"),
            Fault.TOO_SLOW: (408, "body_too_slow"),
            Fault.TOO_LARGE: (413, "body_too_large"),
            Fault.REFUSE_KEY: (401, "invalid_api_key"),
            Fault.REFUSE_REQUEST: (422, "unprocessable"),
        }.get(fault)
        if refused is not None:
            status, code = refused
            extra = f"retry-after: {self.retry_after}\r\n" if status in (429, 503) else ""
            extra += 'www-authenticate: Bearer realm="apex"\r\n' if status == 401 else ""
            self._write(writer, status, {"success": False, "error": {"code": code, "message": "no"}}, extra)
            return True
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        is_ndjson = headers.get("content-type") == "application/x-ndjson"
        batch = _lines(body) if is_ndjson else json.loads(body)
        self.batch_sizes.append(len(batch))
        results = [self._take(event) for event in batch]
        if fault is Fault.DROP_AFTER:
            writer.transport.abort()
            return False
        if fault is Fault.HALF_ANSWER:
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"success": true')
            await writer.drain()
            writer.close()
            return False
        if fault is Fault.GARBAGE:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n<html>no>")
            return True
        answer = {"success": True, "results": results[1:] if fault is Fault.SHORT else results}
        odd = {Fault.LIST: [], Fault.NULL: None, Fault.NULL_RESULTS: {"results": [None] * len(results)}}
        self._write(writer, 200, odd.get(fault, answer))
        await writer.drain()
        return True

    def _take(self, event: dict[str, Any] | None) -> dict[str, Any]:
        if event is None:
            return {"event_id": None, "status": "rejected", "reason": "malformed_event"}
        name = event["event_id"]
        reason = self.reject(event)
        if reason is not None:
            return {"event_id": name, "status": "rejected", "reason": reason}
        self.arrivals.append(name)
        if name in self.events:
            return {"event_id": name, "status": "duplicate"}
        self.events[name] = event
        return {"event_id": name, "status": "accepted"}

    def _write(self, writer: asyncio.StreamWriter, status: int, answer: object, extra: str = "") -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)


def _lines(body: bytes) -> list[dict[str, Any] | None]:
    """The events of an NDJSON body; blank lines are passed over, as the API does."""
    return [_line(line) for line in body.split(b"\n") if line.strip()]


def _line(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None if it is no JSON for the API's decoder, which is stricter than Python's."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
