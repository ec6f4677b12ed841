"""Reading request bodies within limits, whatever the client claims or compresses.

Belongs here: bytes off the wire. Does not belong here: what they mean (`decoding`).
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Protocol

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined] # exported under another name

from ingest_api.responses import HttpError

# A client that was refused early sees a broken connection instead of the answer, so a little more than
# the limit is read and thrown away before answering.
_DRAINED_LIMITS = 4
_BODY_SECONDS = 30


class RequestHeaders(Protocol):
    def get(self, key: str, default: str | None = None) -> str | None: ...


class RequestProtocol(Protocol):
    """What this module needs of the server's HTTP protocol object."""

    async def __call__(self) -> bytes: ...

    def __aiter__(self) -> RequestProtocol: ...

    async def __anext__(self) -> bytes: ...


async def read_body(headers: RequestHeaders, protocol: RequestProtocol, limit: int) -> bytes:
    """The body, decompressed; at most `limit` bytes both on the wire and after decompression.

    Raises
    ------
    HttpError
        413 if it is larger, 415 for an encoding other than gzip, 400 if the gzip data is broken or the client
        went away half-way, 408 if it is too slow.
    """
    encoding = (headers.get("content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise HttpError(
            415, "unsupported_encoding", f"Content-Encoding {encoding[:40]!r} is not gzip or identity"
        )
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await _read_wire(headers, protocol, limit)
    except TimeoutError as error:
        message = f"the body did not arrive within {_BODY_SECONDS} s"
        raise HttpError(408, "body_too_slow", message, [("connection", "close")]) from error
    except ProtocolClosed as error:
        raise HttpError(400, "body_cut_off", "the connection ended before the body did") from error
    return body if encoding == "identity" else gunzip(body, limit)


async def _read_wire(headers: RequestHeaders, protocol: RequestProtocol, limit: int) -> bytes:
    announced = headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) <= limit:
        return await protocol()  # the server reads no more than what was announced
    chunks: list[bytes] = []
    size = 0
    async for chunk in protocol:
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
            if size > limit * _DRAINED_LIMITS:
                break
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


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
    return HttpError(413, "body_too_large", message, [("connection", "close")])
