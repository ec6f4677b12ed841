"""HTTP/1.1 over one blocking socket: requests come in, answers go out.

Belongs here: framing, keep-alive, `Expect: 100-continue`, limits on what a peer may send, noticing that it
has gone. Does not belong here: what a request means.

A thread per connection reads and writes its socket directly: a row on its way to or from the engine then
passes through no event loop and no queue, which on two cores is the difference between 40 % and all of the
engine's own rate.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

# As a ClickHouse server's defaults have it, where it has them.
MAX_HEAD_BYTES = 1 << 20
IDLE_SECONDS = 30.0
HEAD_SECONDS = 30.0
RECEIVE_SECONDS = 60.0
SEND_SECONDS = 300.0
# Of a body that nobody wants, this much is read so that its sender gets to see the answer.
DRAIN_BYTES = 16 << 20
DRAIN_SECONDS = 2.0

_RECEIVE_BYTES = 1 << 17


class ClientGone(Exception):
    """The client closed the connection before its request was answered."""


class BadRequest(Exception):
    """The peer does not speak HTTP/1, or sends more than it may."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Head:
    """What stands before a body; names of headers in lower case."""

    method: str
    target: bytes
    headers: dict[str, str]
    version: str
    keep_alive: bool


@dataclass(slots=True)
class _Reading:
    """A head of which not all has arrived."""

    target: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)


class HttpConnection:
    """One accepted connection. For one thread, but for `hang_up`.

    Parameters
    ----------
    raw : socket
        Connected; closed by `close`.
    """

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._parser = httptools.HttpRequestParser(self)
        self._buffer = bytearray(_RECEIVE_BYTES)
        # What the parser has found and nobody has taken: heads, pieces of bodies, None for the end of one.
        self._found: deque[Head | bytes | None] = deque()
        self._reading = _Reading()
        self._head: Head | None = None
        self._body_ended = True
        self._continue_awaited = False
        self._chunked = False
        self._resuming = False
        self._status = 0
        self.answering = False
        self.serving = False
        self.idle = True

    # -- the parser's callbacks ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = _Reading()

    def on_url(self, url: bytes) -> None:
        self._reading.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reading.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            return
        parser, reading = self._parser, self._reading
        # What follows the body as trailers was vouched for by nobody, and changes nothing.
        self._reading = _Reading()
        self._found.append(
            Head(
                parser.get_method().decode("latin-1"),
                bytes(reading.target),
                reading.headers,
                parser.get_http_version(),
                parser.should_keep_alive(),
            )
        )

    def on_body(self, data: bytes) -> None:
        self._found.append(data)

    def on_message_complete(self) -> None:
        self._found.append(None)

    # -- reading ------------------------------------------------------------------------------------------

    def next_head(self) -> Head | None:
        """The head of the next request; None when the peer is done or has been silent for too long.

        Raises
        ------
        BadRequest
            When what arrives is no request.
        """
        self.idle = not self._found
        deadline = time.monotonic() + HEAD_SECONDS
        received = 0
        while not self._found:
            count = self._receive(IDLE_SECONDS if self.idle else max(deadline - time.monotonic(), 0.01))
            if not count:
                return None
            if self.idle:
                self.idle, deadline = False, time.monotonic() + HEAD_SECONDS
            received += count
            if received > MAX_HEAD_BYTES and not self._found:
                raise BadRequest(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
            if time.monotonic() > deadline and not self._found:
                raise BadRequest(408, "the request's head did not arrive in time")
        head = self._found.popleft()
        assert isinstance(head, Head)  # noqa: S101 - a message begins with its head
        self._head, self._body_ended, self.answering = head, False, False
        expects = head.headers.get("expect", "").lower() == "100-continue"
        self._continue_awaited = expects and head.version == "1.1"
        return head

    def read_body(self) -> bytes | None:
        """The next piece of the request's body; None at its end.

        Raises
        ------
        ClientGone
            When the peer closed the connection, or sent nothing for too long.
        """
        fruitless = 0
        while not self._body_ended:
            if self._found:
                piece = self._found.popleft()
                assert not isinstance(piece, Head)  # noqa: S101 - a head follows only after an end
                if piece is None:
                    break
                return piece
            if self._continue_awaited:
                self._continue_awaited = False
                self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
            count = self._receive(RECEIVE_SECONDS)
            if not count:
                raise ClientGone
            fruitless += count
            if fruitless > MAX_HEAD_BYTES and not self._found:
                raise BadRequest(431, f"the body's trailers are larger than {MAX_HEAD_BYTES} bytes")
        self._body_ended = True
        return None

    def _receive(self, timeout: float) -> int:
        """Take in what has arrived, at least a byte; 0 when the peer closed or nothing came in time."""
        self._socket.settimeout(timeout)
        try:
            count = self._socket.recv_into(self._buffer)
        except OSError:
            return 0
        if count:
            self._parse(memoryview(self._buffer)[:count])
        return count

    def _parse(self, data: memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # Declined by answering in HTTP/1.1. The parser believes in another protocol behind the head,
                # so a new one goes on, which is told how the body is framed.
                self._parser = httptools.HttpRequestParser(self)
                data = data[offer.args[0] :]
                head = self._found[-2]
                assert isinstance(head, Head)  # noqa: S101 - before the end that was just found
                for name in ("content-length", "transfer-encoding"):
                    if name in head.headers:
                        self._found.pop()
                        self._resuming = True
                        self._parser.feed_data(
                            b"POST / HTTP/1.1\r\n" + header_line(name, head.headers[name]) + b"\r\n"
                        )
                        break
            except httptools.HttpParserError as error:
                raise BadRequest(400, f"not an HTTP/1 request: {error}") from error

    def wait(self, other: int, seconds: float | None) -> bool:
        """Wait until the descriptor `other` is readable or at its end; False when `seconds` passed before.

        Raises
        ------
        ClientGone
            When the peer hangs up meanwhile.
        """
        poll = select.poll()
        poll.register(other, select.POLLIN)
        own = self._socket.fileno()
        poll.register(own, select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else max(seconds, 0.0) * 1000))
        if own in ready and other not in ready:
            if self._has_hung_up():
                raise ClientGone
            # The next request is there already; it can wait, and so can the news that its sender left.
            poll.unregister(own)
            ready = dict(poll.poll(None if seconds is None else max(seconds, 0.0) * 1000))
        return other in ready

    def _has_hung_up(self) -> bool:
        self._socket.settimeout(0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # -- writing ------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: Mapping[str, str], length: int | None) -> bytes:
        """The head of an answer, to be sent before or with its body.

        Parameters
        ----------
        length : int, optional
            Bytes of body; None for a body whose end is not known yet.
        """
        lines = [self.status_line(status), *(header_line(*item) for item in headers.items())]
        return b"".join([*lines, self.end_of_head(length)])

    def status_line(self, status: int) -> bytes:
        """First line of an answer; header lines and `end_of_head` must follow."""
        self.answering = True
        self._status = status
        return b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())

    def end_of_head(self, length: int | None) -> bytes:
        """The header lines that frame the body, and the empty line."""
        head = self._head
        assert head is not None  # noqa: S101 - there is no answer without a request
        self._chunked = length is None and head.version == "1.1"
        if not self._body_ended and not self._found_whole_body():
            head.keep_alive = False
        head.keep_alive = head.keep_alive and (length is not None or self._chunked)
        lines = [header_line("Connection", "Keep-Alive" if head.keep_alive else "Close")]
        if head.keep_alive:
            lines.append(header_line("Keep-Alive", f"timeout={IDLE_SECONDS:.0f}"))
        if length is not None and self._status != 204:
            lines.append(header_line("Content-Length", str(length)))
        elif self._chunked:
            lines.append(header_line("Transfer-Encoding", "chunked"))
        return b"".join([*lines, b"\r\n"])

    @property
    def only_head(self) -> bool:
        """Whether the request wants no body in its answer."""
        return self._head is not None and self._head.method == "HEAD"

    def send(self, data: bytes) -> None:
        """Send as it is.

        Raises
        ------
        ClientGone
            When the peer has closed the connection or reads nothing for too long.
        """
        self._send(data)

    def send_piece(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of a body whose length was not said; `last` ends it."""
        if self.only_head:
            return
        if not self._chunked:
            self._send(data)
            return
        if data:
            self._send(b"%x\r\n" % len(data), more=True)
            self._send(data, more=True)
        ending = b"\r\n" if data else b""
        self._send(ending + (b"0\r\n\r\n" if last else b""))

    def _send(self, data: bytes, *, more: bool = False) -> None:
        self._socket.settimeout(SEND_SECONDS)
        try:
            # A small piece before a large one goes out in the same packet.
            self._socket.sendall(data, getattr(socket, "MSG_MORE", 0) if more else 0)
        except OSError as error:
            raise ClientGone from error

    def refuse(self, error: BadRequest) -> None:
        """Answer what can't be served, unless an answer has begun, which then ends where it is."""
        if not self.answering:
            body = f"{error}\n".encode()
            phrase = HTTPStatus(error.status).phrase.encode()
            head = b"HTTP/1.1 %d %s\r\nConnection: Close\r\nContent-Length: %d\r\n\r\n"
            self._send(head % (error.status, phrase, len(body)) + body)
            self.answering, self._body_ended = True, False

    # -- ending -------------------------------------------------------------------------------------------

    def finish(self) -> bool:
        """After an answer: whether another request may come."""
        head = self._head
        if head is None or not head.keep_alive:
            return False
        while self._found and not self._body_ended:
            self._body_ended = self._found.popleft() is None
        return self._body_ended

    def _found_whole_body(self) -> bool:
        return None in self._found

    def hang_up(self) -> None:
        """From another thread: have a connection that waits for a request see its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close; what was sent is left to arrive, also when the peer is still sending a body."""
        try:
            if self.answering and not self._body_ended:
                self._drain()
        finally:
            self._socket.close()

    def _drain(self) -> None:
        """Closing with unread data would reset the connection, and the answer with it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            deadline, left = time.monotonic() + DRAIN_SECONDS, DRAIN_BYTES
            while left > 0 and (seconds := deadline - time.monotonic()) > 0:
                self._socket.settimeout(seconds)
                count = self._socket.recv_into(self._buffer)
                if not count:
                    break
                left -= count


def header_line(name: str, value: str) -> bytes:
    """One header; a line break in the value, which may be a client's own word, ends nothing."""
    return f"{name}: {' '.join(value.splitlines())}\r\n".encode("latin-1", "replace")
