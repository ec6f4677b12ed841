"""From the bytes of a request's head to its parts, and from chunks to a body.

Belongs here: what llhttp, the parser of Node.js, says of them. Does not belong here: connections, limits on
time and size (`http_connection`).
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import httptools

_MOST_HEADERS = 100
_VERSIONS = frozenset({"1.0", "1.1"})
_HEAD_OF_CHUNKS = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
# Names that nearly every request has; others are decoded one by one.
_NAMES = {
    name.encode(): name.lower()
    for common in (
        "Host", "Authorization", "Content-Type", "Content-Length", "Accept", "Accept-Encoding", "Connection",
        "User-Agent", "X-Request-Id", "Content-Encoding", "Transfer-Encoding", "Expect", "Origin",
    )
    for name in (common, common.lower())
}  # fmt: skip


class BadHead(Exception):
    """The bytes are no request; the message says why."""


class HeadTooLarge(BadHead):
    """More headers than anybody needs."""


class RequestHead:
    """Request line and headers.

    Attributes
    ----------
    path : str
        Percent-decoded, without the query, which is in `query` as it was sent.
    headers : dict of str to str
        By name in lower case; values as Latin-1, those of a repeated name joined by commas.
    length : int or None
        Bytes of the body that follows; None when it comes in chunks.
    keeps_alive : bool
        Whether the client wants to send another request on this connection.
    began : float
        `time.perf_counter` when the head was complete.
    found : object
        For the application, which may keep there what it found out when it was first asked.
    """

    __slots__ = (
        "began", "expects_continue", "found", "headers", "is_http_1_0", "keeps_alive", "length", "method",
        "path", "query",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        length: int | None = 0,
        *,
        keeps_alive: bool = False,
        is_http_1_0: bool = False,
    ) -> None:
        self.method = method
        path, _, self.query = target.partition("?")
        self.path = unquote(path) if "%" in path else path
        self.headers = headers
        self.length = length
        self.keeps_alive = keeps_alive
        self.is_http_1_0 = is_http_1_0
        self.expects_continue = "expect" in headers and not is_http_1_0
        self.began = time.perf_counter()
        self.found: Any = None


class Message:
    """A parser for one request: its head at once, then its body where that comes in chunks."""

    __slots__ = ("_keeps_alive", "_pairs", "_parser", "_target", "body", "is_complete")

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._pairs: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._keeps_alive: bool | None = None
        self.is_complete = False
        self.body: list[bytes] = []

    def head(self, data: bytes) -> RequestHead:
        """Parse `data`, which ends with the empty line after the headers.

        Raises
        ------
        BadHead
            If that is no head of an HTTP/1 request.
        """
        try:
            return self._head(data)
        except BadHead:
            self.end()
            raise

    def _head(self, data: bytes) -> RequestHead:
        self.feed(data)
        if self._keeps_alive is None:
            raise BadHead("the head of the request is incomplete")
        if len(self._pairs) > _MOST_HEADERS:
            raise HeadTooLarge(f"{len(self._pairs)} headers, at most {_MOST_HEADERS}")
        headers: dict[str, str] = {}
        for name, value in self._pairs:
            known = _NAMES.get(name) or name.decode("latin-1").lower()
            if known in headers:
                headers[known] += ", " + value.decode("latin-1")
            else:
                headers[known] = value.decode("latin-1")
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise BadHead(f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        if version == "1.1" and "," in headers.get("host", ","):
            raise BadHead("the header Host is not there just once")
        method = self._parser.get_method().decode()
        if method == "CONNECT":
            raise BadHead("this is no proxy")
        length: int | None = int(headers.get("content-length", 0))
        if "transfer-encoding" in headers:
            if version == "1.0":
                raise BadHead("HTTP/1.0 has no chunks")
            length = None
            if self._parser.should_upgrade():
                self._expect_chunks()
        else:
            self.end()
        target = _origin_form(self._target.decode("latin-1"))
        return RequestHead(
            method, target, headers, length, keeps_alive=self._keeps_alive, is_http_1_0=version == "1.0"
        )

    def feed(self, data: bytes) -> None:
        """Parse more: what it held of a body that comes in chunks is appended to `body`.

        Raises
        ------
        BadHead
            If these are no chunks, or something follows the last of them.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer of another protocol, which is passed over
        except httptools.HttpParserError as error:
            raise BadHead(f"that is no HTTP/1.1: {error}") from error

    def end(self) -> None:
        """Let go of the parser, which holds this message and is held by it."""
        self._parser = None

    def _expect_chunks(self) -> None:
        """Begin the body anew, where the parser takes what follows for the protocol that was offered."""
        target, keeps_alive = self._target, self._keeps_alive
        self.is_complete = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_HEAD_OF_CHUNKS)
        self._target, self._keeps_alive = target, keeps_alive

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadHead("something follows the last chunk")

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._keeps_alive is None:  # trailers, which come later, mean nothing here
            self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        # The parser forgets it at the end of the message, which without a body is here.
        self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = True


def _origin_form(target: str) -> str:
    """`/path?query` of a target that may name the server as well."""
    if target.startswith(("http://", "https://")):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.partition("#")[0] if "#" in target else target
