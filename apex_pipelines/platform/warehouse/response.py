"""How answers look: headers, summary, progress, compression, errors.

Belongs here: building the messages of one answer. Does not belong here: deciding what to answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import IO, Protocol

from apex_pipelines.platform.warehouse.blocks import new_block_encoder
from apex_pipelines.platform.warehouse.encodings import Encoder, accepted_encoding, new_encoder
from apex_pipelines.platform.warehouse.engine import Engine, Progress
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.formats import content_type
from apex_pipelines.platform.warehouse.http1 import ClientGone, HttpConnection, header_line
from apex_pipelines.platform.warehouse.request import FALSE, Request, is_small_number

_TEXT = "text/plain; charset=UTF-8"
_STEP_BYTES = 1 << 20


class _Identity:
    """Encodes nothing."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Both:
    """One encoder after another."""

    def __init__(self, inner: Encoder, outer: Encoder) -> None:
        self._inner = inner
        self._outer = outer

    def feed(self, data: bytes) -> bytes:
        return self._outer.feed(self._inner.feed(data))

    def finish(self) -> bytes:
        return self._outer.feed(self._inner.finish()) + self._outer.finish()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Answer:
    """The answer to one query.

    Its end is held back until `release`, so that the query's session and id are free again when the client
    has read the whole answer.
    """

    def __init__(self, request: Request, connection: HttpConnection, engine: Engine) -> None:
        self._request = request
        self._connection = connection
        self._engine = engine
        self._held: list[bytes] = []
        self._last: bytes | None = None
        self._progress_sent = False
        self._started = False

    def progress(self, live: Mapping[str, int]) -> None:
        """Tell how far the query is, in a header; the status is then said, whatever comes."""
        lines = [header_line("X-ClickHouse-Progress", _as_json(live))] if live else []
        if not self._progress_sent:
            self._progress_sent = True
            common = [header_line(*item) for item in self._common().items()]
            lines = [self._connection.status_line(200), *common, *lines]
        self._connection.send(b"".join(lines))

    def done(self, progress: Progress) -> None:
        """Answer a statement that has no result."""
        self._whole(200, _TEXT, {"X-ClickHouse-Summary": _summary(progress)}, b"")

    def whole(self, format_name: str, result: IO[bytes] | bytes, progress: Progress) -> None:
        """Answer with a result that is complete, given as bytes or as a file at its beginning."""
        headers = {"X-ClickHouse-Format": format_name, "X-ClickHouse-Summary": _summary(progress)}
        encoder = self._encoder(headers)
        if isinstance(result, bytes):
            body = encoder.feed(result) + encoder.finish()
            self._whole(200, content_type(format_name), headers, body)
            return
        self._begin(200, content_type(format_name), headers, None)
        for piece in _pieces(result):
            self.send_piece(encoder.feed(piece))
        self.end(encoder.finish())

    def fail(self, error: QueryError) -> None:
        """Answer with an error and the HTTP status that ClickHouse gives it."""
        error = self.with_version(error)
        headers = {"X-ClickHouse-Exception-Code": str(error.code)}
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        self._whole(error.status, _TEXT, headers, error.message.encode("utf-8", "replace") + b"\n")

    def start(self, format_name: str, tag: str, so_far: Mapping[str, int]) -> Encoder:
        """Begin a result that is streamed; returns what its pieces must pass through."""
        headers = {
            "X-ClickHouse-Format": format_name,
            "X-ClickHouse-Summary": _as_json({**asdict(Progress()), **so_far}),
            "X-ClickHouse-Exception-Tag": tag,
        }
        encoder = self._encoder(headers)
        self._begin(200, content_type(format_name), headers, None)
        self._flush()
        return encoder

    def send_piece(self, piece: bytes) -> None:
        """Send an encoded piece of a result that is streamed."""
        if piece:
            self._flush()
            self._connection.send_piece(piece)

    def end(self, piece: bytes) -> None:
        """End a result that is streamed."""
        self._last = piece

    def release(self) -> None:
        """Send what is held back."""
        self._flush()
        if self._last is not None:
            self._connection.send_piece(self._last, last=True)
            self._last = None

    def with_version(self, error: QueryError) -> QueryError:
        """The error with the engine's version in its text, where a server puts it."""
        if " (version " in error.message:
            return error
        message = f"{error.message} (version {self._engine.version})"
        return QueryError(error.name, "", code=error.code, message=message)

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._connection.send(b"".join(held))

    def _encoder(self, headers: dict[str, str]) -> Encoder:
        """What the client asked for: ClickHouse's own blocks, an HTTP encoding, both, or neither.

        An HTTP encoding is asked for by Accept-Encoding and can be turned off by a setting.
        """
        request = self._request
        blocks = None
        if request.flag("compress"):
            blocks = _block_encoder(request)
        outer: Encoder | None = None
        if request.params.get("enable_http_compression", "1").lower() not in FALSE:
            encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
            if encoding is not None:
                headers["Content-Encoding"] = encoding
                level = request.params.get("http_zlib_compression_level", "3")
                outer = new_encoder(encoding, int(level) if is_small_number(level) else 3)
        if blocks is not None and outer is not None:
            return _Both(blocks, outer)
        return blocks or outer or _Identity()

    def _whole(self, status: int, content: str, headers: dict[str, str], body: bytes) -> None:
        if self._started:
            # What has begun can't be answered anew; that it is not ended tells the client.
            raise ClientGone
        self._begin(status, content, headers, len(body))
        if self._request.method != "HEAD":
            self._held.append(body)

    def _common(self) -> dict[str, str]:
        request = self._request
        return {
            "X-ClickHouse-Server-Display-Name": self._engine.host,
            "X-ClickHouse-Query-Id": request.query_id,
            "X-ClickHouse-Timezone": request.params.get("session_timezone") or self._engine.timezone,
        }

    def _begin(self, status: int, content: str, headers: dict[str, str], length: int | None) -> None:
        self._started = True
        headers = {"Content-Type": content, **headers}
        if self._progress_sent:
            lines = [header_line(*item) for item in headers.items()]
            self._held += [*lines, self._connection.end_of_head(length)]
        else:
            self._held.append(self._connection.begin(status, {**self._common(), **headers}, length))


def _block_encoder(request: Request) -> Encoder:
    """ClickHouse's own blocks, in LZ4 unless asked otherwise: every client reads that."""
    try:
        return new_block_encoder(request.params.get("network_compression_method", "LZ4"))
    except ValueError as error:
        raise QueryError("BAD_ARGUMENTS", str(error)) from error


def plain_answer(connection: HttpConnection, status: int, text: str, **headers: str) -> None:
    """Answer with a text, outside of any query."""
    body = text.encode()
    head = connection.begin(status, {"Content-Type": _TEXT, **headers}, len(body))
    connection.send(head if connection.only_head else head + body)


def _pieces(file: _Readable) -> Iterator[bytes]:
    while piece := file.read(_STEP_BYTES):
        yield piece


def _summary(progress: Progress) -> str:
    numbers = asdict(progress)
    numbers["total_rows_to_read"] = max(progress.total_rows_to_read, progress.read_rows)
    return _as_json(numbers)


def _as_json(numbers: Mapping[str, int]) -> str:
    return json.dumps({name: str(value) for name, value in numbers.items()}, separators=(",", ":"))
