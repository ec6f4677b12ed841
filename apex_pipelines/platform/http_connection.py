"""One keep-alive HTTP/1.1 connection for many small requests.

Belongs here: bytes on the wire. Does not belong here: what is asked, retries, keys (`ingest_client.py`).

Sending the telemetry of thousands of customers is thousands of small requests, each with its own key.
Measured on 2 cores against a trivial server: httpx 500 requests/s from one pool and 1,300 with a client per
worker; this, on the parser that uvicorn uses too, over 30,000.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

MAX_ANSWER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, read from a base URL."""

    host: str
    port: int
    tls: bool
    base_path: str

    @classmethod
    def of(cls, base_url: str) -> Endpoint:
        """Parse `http(s)://host[:port][/path]`.

        Raises
        ------
        ValueError
            If it is no such URL.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is no http:// or https:// address")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class HttpConnection(asyncio.Protocol):
    """A connection that carries one request at a time. Made by `connect`, closed by `close`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._answer: asyncio.Future[Answer] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._received = 0

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> HttpConnection:
        """Open a connection.

        Raises
        ------
        OSError
            If nothing listens there.
        """
        _, protocol = await asyncio.get_running_loop().create_connection(
            lambda: cls(endpoint),
            endpoint.host,
            endpoint.port,
            ssl=ssl.create_default_context() if endpoint.tls else None,
        )
        return protocol

    @property
    def usable(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send one POST and read its answer.

        Raises
        ------
        ConnectionError
            If the connection ended before the whole answer had come, or what came is no HTTP.
        """
        if self._transport is None or not self.usable:
            raise ConnectionResetError("the server closed the connection")
        if self._answer is not None and not self._answer.done():
            raise RuntimeError("a connection carries one request at a time")
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self._received = {}, [], 0
        lines = [f"POST {self._endpoint.base_path}{path} HTTP/1.1", f"host: {self._host_header()}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"content-length: {len(body)}")
        self._transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return await self._answer

    def close(self) -> None:
        """Close at once; a request under way fails with ConnectionError."""
        if self._transport is not None:
            self._transport.abort()

    def _host_header(self) -> str:
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        return f"{host}:{self._endpoint.port}"

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes a full Transport

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._answer is None or self._answer.done():
            self.close()  # bytes that nobody asked for: the two sides no longer agree where an answer starts
            return
        try:
            if self._received > MAX_ANSWER_BYTES:
                raise ConnectionAbortedError(f"the answer is longer than {MAX_ANSWER_BYTES:,} bytes")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ConnectionAbortedError) as error:
            self._fail(ConnectionAbortedError(f"what came back is no HTTP answer: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError(str(exc) if exc else "the server closed the connection"))

    def _fail(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._headers, b"".join(self._body))
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
