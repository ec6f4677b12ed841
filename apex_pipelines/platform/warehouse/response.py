"""How answers look: headers, summary, compression, errors.

Belongs here: building the messages of one answer. Does not belong here: deciding what to answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from apex_pipelines.platform.warehouse.encodings import Encoder, accepted_encoding, new_encoder
from apex_pipelines.platform.warehouse.engine import Engine, Progress
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.formats import content_type
from apex_pipelines.platform.warehouse.request import FALSE, Request

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TEXT = "text/plain; charset=UTF-8"


class _Identity:
    """Encodes nothing."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class Answer:
    """The answer to one query.

    Its last message is held back until `release`, so that the query's session and id are free again when
    the client has read the whole answer.
    """

    def __init__(self, request: Request, send: Send, engine: Engine) -> None:
        self._request = request
        self._send = send
        self._engine = engine
        self._held: list[MutableMapping[str, Any]] = []
        self._started = False

    async def done(self, progress: Progress) -> None:
        """Answer a statement that has no result."""
        await self._whole(200, _TEXT, {"X-ClickHouse-Summary": _summary(progress)}, b"")

    async def whole(self, format_name: str, result: bytes, progress: Progress) -> None:
        """Answer with a result that is complete."""
        headers = {"X-ClickHouse-Format": format_name, "X-ClickHouse-Summary": _summary(progress)}
        encoder = self._encoder(headers)
        result = encoder.feed(result) + encoder.finish()
        await self._whole(200, content_type(format_name), headers, result)

    async def fail(self, error: QueryError) -> None:
        """Answer with an error and the HTTP status that ClickHouse gives it."""
        error = self.with_version(error)
        headers = {"X-ClickHouse-Exception-Code": str(error.code)}
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        await self._whole(error.status, _TEXT, headers, error.message.encode("utf-8", "replace") + b"\n")

    async def start(self, format_name: str, tag: str) -> Encoder:
        """Begin a result that is streamed; returns what its pieces must pass through."""
        headers = {"X-ClickHouse-Format": format_name, "X-ClickHouse-Exception-Tag": tag}
        encoder = self._encoder(headers)
        await self._begin(200, content_type(format_name), headers)
        return encoder

    async def send_piece(self, piece: bytes) -> None:
        """Send an encoded piece of a result that is streamed."""
        if piece:
            self._held.append({"type": "http.response.body", "body": piece, "more_body": True})
            await self.release()

    async def end(self, piece: bytes) -> None:
        """End a result that is streamed."""
        self._held.append({"type": "http.response.body", "body": piece, "more_body": False})

    async def release(self) -> None:
        """Send what is held back."""
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    def with_version(self, error: QueryError) -> QueryError:
        """The error with the engine's version in its text, where a server puts it."""
        if " (version " in error.message:
            return error
        message = f"{error.message} (version {self._engine.version})"
        return QueryError(error.name, "", code=error.code, message=message)

    def _encoder(self, headers: dict[str, str]) -> Encoder:
        """The encoder that the client asked for, with its header; it must have asked in both ways."""
        request = self._request
        if request.params.get("enable_http_compression", "0").lower() in FALSE:
            return _Identity()
        encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
        if encoding is None:
            return _Identity()
        headers["Content-Encoding"] = encoding
        level = request.params.get("http_zlib_compression_level", "3")
        return new_encoder(encoding, int(level) if level.isdecimal() else 3)

    async def _whole(self, status: int, content: str, headers: dict[str, str], body: bytes) -> None:
        if self._started:
            return  # an error after the answer began can only be told by not ending it
        await self._begin(status, content, {**headers, "Content-Length": str(len(body))})
        await self.end(body)

    async def _begin(self, status: int, content: str, headers: dict[str, str]) -> None:
        self._started = True
        request = self._request
        common = {
            "Content-Type": content,
            "X-ClickHouse-Server-Display-Name": self._engine.host,
            "X-ClickHouse-Query-Id": request.query_id,
            "X-ClickHouse-Timezone": request.params.get("session_timezone") or self._engine.timezone,
        }
        self._held.append(_start(status, {**common, **headers}))


async def plain_answer(send: Send, status: int, text: str, **headers: str) -> None:
    """Answer with a text, outside of any query."""
    body = text.encode()
    await send(_start(status, {"Content-Type": _TEXT, "Content-Length": str(len(body)), **headers}))
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _start(status: int, headers: dict[str, str]) -> MutableMapping[str, Any]:
    # A header ends at a line break; what a client sent and gets back must not add another.
    raw = [
        (name.encode("latin-1"), " ".join(value.splitlines()).encode("latin-1", "replace"))
        for name, value in headers.items()
    ]
    return {"type": "http.response.start", "status": status, "headers": raw}


def _summary(progress: Progress) -> str:
    return json.dumps(
        {
            "read_rows": str(progress.read_rows),
            "read_bytes": str(progress.read_bytes),
            "written_rows": str(progress.written_rows),
            "written_bytes": str(progress.written_bytes),
            "total_rows_to_read": str(progress.read_rows),
            "result_rows": str(progress.result_rows),
            "result_bytes": str(progress.result_bytes),
            "elapsed_ns": str(progress.elapsed_ns),
        },
        separators=(",", ":"),
    )
