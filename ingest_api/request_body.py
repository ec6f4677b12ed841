"""Reading request bodies within limits, whatever the client claims or compresses.

Belongs here: bytes off the wire. Does not belong here: what they mean (`decoding`).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Collection
from typing import Protocol, cast

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined] # exported under another name

from ingest_api.responses import HttpError

# A client that was refused early sees a broken connection instead of the answer, so a little more than
# the limit is read and thrown away before answering.
_DRAINED_LIMITS = 4
_SMALL_BYTES = 16_384  # what an SDK usually sends stays below
_CHECK_SECONDS = 0.25  # how much longer than allowed a body may take
_CLOSE = ("connection", "close")
# Each member of a gzip body costs a copy of what follows it: 50,000 empty ones in 1 MiB took 0.7 s.
_MAX_GZIP_MEMBERS = 100
# Types that clients send without thinking (`curl -d` the first); what is in them is taken for JSON.
_CARELESS_TYPES = frozenset(
    {"", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"}
)


class RequestHeaders(Protocol):
    def get(self, key: str, default: str | None = None) -> str | None: ...


class RequestProtocol(Protocol):
    """What this module needs of the server's HTTP protocol object."""

    async def __call__(self) -> bytes: ...

    def __aiter__(self) -> RequestProtocol: ...

    async def __anext__(self) -> bytes: ...


def check_content_type(headers: RequestHeaders, accepted: Collection[str]) -> None:
    """Refuse what says of itself that it is something else.

    Raises
    ------
    HttpError
        415 for a type that is not `accepted`, or a character set other than UTF-8.
    """
    header = headers.get("content-type")
    if header is None or header in accepted:
        return
    media_type, *parameters = (part.strip().lower() for part in header.split(";"))
    if media_type not in accepted and media_type not in _CARELESS_TYPES:
        message = f"Content-Type {media_type[:60]!r} is not {' or '.join(sorted(accepted))}"
        raise HttpError(415, "unsupported_media_type", message)
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip("\"' ") not in ("utf-8", "utf8", "us-ascii"):
            raise HttpError(415, "unsupported_charset", f"{value[:40]!r} is not UTF-8")


class BodyReader:
    """Reads the bodies of one worker's requests.

    Parameters
    ----------
    limit : int
        Bytes of one body, both on the wire and after decompression.
    seconds : float
        How long a body may take to arrive.
    room : int
        Bytes that all bodies under way may take together; small ones don't count, so that clients which
        leave large ones unfinished can't keep ordinary requests out.
    """

    def __init__(self, limit: int, seconds: float, room: int) -> None:
        self._limit = limit
        self._seconds = seconds
        self._room = room
        # Since when each request waits for its body, the longest first. One timer for all of them: one for
        # each cost a tenth of what taking an event costs.
        self._waiting: dict[asyncio.Task[object], float] = {}
        self._overdue: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, headers: RequestHeaders, protocol: RequestProtocol) -> bytes:
        """The body, decompressed.

        Raises
        ------
        HttpError
            413 if it is too large, 415 for an encoding other than gzip, 400 if the gzip data is broken or the
            client went away half-way, 408 if it is too slow, 503 if too much is under way.
        """
        encoding = (headers.get("content-encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise HttpError(
                415, "unsupported_encoding", f"Content-Encoding {encoding[:40]!r} is not gzip or identity"
            )
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._waiting[task] = time.monotonic()
        if self._timer is None:
            self._timer = task.get_loop().call_later(_CHECK_SECONDS, self._end_overdue)
        try:
            body = await self._read_wire(headers, protocol)
        except asyncio.CancelledError as error:
            if task not in self._overdue:
                raise  # the client is gone
            task.uncancel()
            message = f"the body did not arrive within {self._seconds:g} s"
            raise HttpError(408, "body_too_slow", message, [_CLOSE]) from error
        except ProtocolClosed as error:
            raise HttpError(400, "body_cut_off", "the connection ended before the body did") from error
        finally:
            self._waiting.pop(task, None)
            self._overdue.discard(task)
        return body if encoding == "identity" else gunzip(body, self._limit)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        while self._waiting:
            task, since = next(iter(self._waiting.items()))
            if now - since < self._seconds:
                break
            del self._waiting[task]
            self._overdue.add(task)
            task.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_CHECK_SECONDS, self._end_overdue) if self._waiting else None

    async def _read_wire(self, headers: RequestHeaders, protocol: RequestProtocol) -> bytes:
        announced = headers.get("content-length")
        if announced is None or not announced.isdecimal():
            return await self._read_chunks(protocol)
        # The HTTP layer refuses a length beyond 20 digits.
        length = int(announced)
        if length > self._limit:
            # A client that waits for permission needs none to be answered; and one that announces a gigabyte
            # would not be done before the answer anyway.
            if headers.get("expect") is not None or length > self._limit * _DRAINED_LIMITS:
                raise _too_large(self._limit)
            return await self._read_chunks(protocol)
        counted = length if length > _SMALL_BYTES else 0
        self._take(counted)
        try:
            return await protocol()  # the server reads no more than what was announced
        finally:
            self._room += counted

    async def _read_chunks(self, protocol: RequestProtocol) -> bytes:
        chunks: list[bytes] = []
        size = counted = 0
        try:
            async for chunk in protocol:
                size += len(chunk)
                if size > self._limit:
                    chunks.clear()
                    if size > self._limit * _DRAINED_LIMITS:
                        break
                    continue
                if size > _SMALL_BYTES:
                    self._take(size - counted)
                    counted = size
                chunks.append(chunk)
        finally:
            self._room += counted
        if size > self._limit:
            raise _too_large(self._limit)
        return b"".join(chunks)

    def _take(self, size: int) -> None:
        if size > self._room:
            message = "nothing was recorded: too many large bodies are under way; send it again"
            raise HttpError(503, "too_many_uploads", message, [("retry-after", "1"), _CLOSE])
        self._room -= size


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress gzip `data`, which may be several members in a row, to at most `limit` bytes.

    Raises
    ------
    HttpError
        413 beyond the limit (no more than that is ever unpacked), 400 if the data is broken or cut off.
    """
    parts: list[bytes] = []
    room = limit
    while data:
        if len(parts) == _MAX_GZIP_MEMBERS:
            raise HttpError(400, "broken_gzip", f"more than {_MAX_GZIP_MEMBERS} gzip members in one body")
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            part = member.decompress(data, room + 1)
        except zlib.error as error:
            raise HttpError(400, "broken_gzip", f"the body is no valid gzip data: {error}") from error
        if len(part) > room:
            raise _too_large(limit)
        if not member.eof:
            raise HttpError(400, "broken_gzip", "the gzip data is cut off")
        parts.append(part)
        room -= len(part)
        data = member.unused_data
    return b"".join(parts)


def _too_large(limit: int) -> HttpError:
    message = f"the body is larger than {limit} bytes, compressed or not; send it in several requests"
    return HttpError(413, "body_too_large", message, [_CLOSE])
