"""One client's connection: requests read whole within limits, answered one after another in their order.

Belongs here: sizes, times and room on the wire, keeping a connection or ending it. Does not belong here: what
requests mean and how they are answered (`app`), processes and listening (`worker`), parsing (`http_head`).

Slow or silent clients cost a little memory and no time: one timer looks after all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol, cast

from apex_pipelines.platform.logging import get_logger
from ingest_api.http_head import BadHead, HeadTooLarge, Message, RequestHead
from ingest_api.responses import CLOSE, Answer, HttpError

log = get_logger(__name__)

_MAX_HEAD_BYTES = 65_536
# A client that was refused early sees a broken connection instead of the answer, so a little more than the
# limit is read and thrown away before answering.
_DRAINED_LIMITS = 4
_SMALL_BYTES = 16_384  # what an SDK usually sends stays below
_AHEAD_BYTES = 65_536  # what a client may send before its last request is answered
_CHECK_SECONDS = 0.25  # how much longer than allowed anything may take
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024 * 1024
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = frozenset({204, 304})
# Stands for a request that could not be read, in logs and metrics.
_UNREADABLE = ("-", "-")


class Application(Protocol):
    """What answers requests, in one worker."""

    async def open(self) -> None:
        """Make ready, in the worker's event loop, before the first request."""
        ...

    def close(self) -> None:
        """Put everything in order after the last request; may block."""
        ...

    def refusal(self, head: RequestHead) -> HttpError | None:
        """Why a request is refused whatever its body is."""
        ...

    def answer(
        self, head: RequestHead, body: bytes, problem: HttpError | None
    ) -> Coroutine[Any, Any, Answer]:
        """Answer a request, or tell of the `problem` that it has on the wire.

        Whatever it raises ends the connection.
        """
        ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client may take; sizes in bytes, times in seconds.

    Attributes
    ----------
    body_size : int
        Of one body on the wire.
    head_seconds : float
        From the end of an answer, or the beginning of a connection, until a head is complete.
    body_seconds : float
        From there until the body is.
    uploading_size : int
        All bodies under way together; small ones don't count, so that clients which leave large ones
        unfinished can't keep ordinary requests out.
    """

    body_size: int
    head_seconds: float
    body_seconds: float
    uploading_size: int


class Connections:
    """All connections of a worker, and what they share."""

    def __init__(
        self, application: Application, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.room = limits.uploading_size
        self.open: set[HttpConnection] = set()
        self.is_draining = False
        # Who waits for what, since when; the longest first.
        self.awaiting_head: dict[HttpConnection, float] = {}
        self.awaiting_body: dict[HttpConnection, float] = {}
        self.lingering: dict[HttpConnection, float] = {}
        self.on_closed: Callable[[], None] = _do_nothing
        self._date = b""
        self._date_at = 0
        self._timer = loop.call_later(_CHECK_SECONDS, self._look_after)

    def date(self) -> bytes:
        """The header Date of this second."""
        now = int(time.time())
        if now != self._date_at:
            self._date, self._date_at = f"date: {formatdate(now, usegmt=True)}\r\n".encode(), now
        return self._date

    async def drain(self, seconds: float) -> None:
        """Close idle connections, and each of the others once its request is answered; at last by force."""
        self.is_draining = True
        for connection in list(self.open):
            connection.close_if_idle()
        until = time.monotonic() + seconds
        while self.open and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._timer.cancel()
        for connection in list(self.open):
            connection.abort()

    def _look_after(self) -> None:
        self._timer = self.loop.call_later(_CHECK_SECONDS, self._look_after)
        now = time.monotonic()
        for waiting, seconds, end in (
            (self.awaiting_head, self.limits.head_seconds, HttpConnection.end_silent),
            (self.awaiting_body, self.limits.body_seconds, HttpConnection.end_slow_body),
            (self.lingering, _LINGER_SECONDS, HttpConnection.end_lingering),
        ):
            while waiting:
                connection, since = next(iter(waiting.items()))
                if now - since < seconds:
                    break
                del waiting[connection]
                end(connection)


class HttpConnection(asyncio.Protocol):
    """Reads requests and writes answers.

    A request is read whole, then handled. What the client sends meanwhile waits, little of it here and the
    rest unread, so one request a connection is in memory, and answers keep their order.
    """

    __slots__ = (
        "_at",
        "_body",
        "_body_size",
        "_can_write",
        "_counted",
        "_has_ended",
        "_head",
        "_is_handling",
        "_is_lingering",
        "_is_paused",
        "_message",
        "_problem",
        "_received",
        "_searched",
        "_shared",
        "_task",
        "_transport",
        "_wire_size",
    )

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._transport: asyncio.Transport
        # What came and is not taken yet begins at `_at`: not cut off each time, since a client may send
        # thousands of requests in one go.
        self._received = b""
        self._at = 0
        self._searched = 0  # no head ends before this
        # Of the request whose body is being read.
        self._head: RequestHead | None = None
        self._message: Message | None = None
        # Grown in place: as pieces, a body that comes byte by byte would take many times its size.
        self._body: bytes | bytearray = b""
        self._body_size = 0
        self._wire_size = 0
        self._counted = 0  # what of the room for large bodies is taken
        self._problem: HttpError | None = None
        self._is_handling = False
        self._is_paused = False
        self._can_write = True
        self._has_ended = False  # nothing more comes from the client
        self._is_lingering = False
        self._task: asyncio.Task[None] | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._shared.open.add(self)
        self._await_head()
        if self._shared.is_draining:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._wire_size += len(data)
            if self._wire_size > _LINGER_BYTES:
                self.abort()
            return
        self._received = self._received[self._at :] + data if self._at < len(self._received) else data
        self._at = 0
        if not self._is_handling and self._can_write:
            self._go_on()
        elif len(self._received) - self._at > _AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more; what it has sent whole is still answered."""
        self._has_ended = True
        if self._is_lingering:
            return False
        if self._is_handling or not self._can_write:
            return True
        if self._head is not None:
            self._refuse(HttpError(400, "body_cut_off", "the connection ended before the body did", [CLOSE]))
            return True
        return False

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        if not self._is_handling and not self._is_lingering and not self._transport.is_closing():
            self._shared.awaiting_head.pop(self, None)  # or it would keep its place among the longest
            self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        shared = self._shared
        shared.open.discard(self)
        for waiting in (shared.awaiting_head, shared.awaiting_body, shared.lingering):
            waiting.pop(self, None)
        self._give_room_back()
        self._received, self._at = b"", 0
        self._body = b""
        if self._message is not None:
            self._message.end()
        shared.on_closed()

    # What the worker calls.

    def close_if_idle(self) -> None:
        """Close unless the body of a request is being read, or a request handled."""
        if not self._is_handling and self._head is None and not self._is_lingering:
            self._transport.close()

    def end_silent(self) -> None:
        """The next request has not come in time."""
        self._transport.close()

    def end_slow_body(self) -> None:
        message = f"the body did not arrive within {self._shared.limits.body_seconds:g} s"
        self._refuse(HttpError(408, "body_too_slow", message, [CLOSE]))

    def end_lingering(self) -> None:
        """The client has had its time to close as well, if it has its answer; the kernel bounds the rest."""
        if self._transport.get_write_buffer_size():
            self._shared.lingering[self] = time.monotonic()
        else:
            self.abort()

    def abort(self) -> None:
        """Let go of the connection and of what was not sent yet."""
        self._transport.abort()

    # Reading.

    def _await_head(self) -> None:
        if self._head is None:
            self._shared.awaiting_head[self] = time.monotonic()

    def _go_on(self) -> None:
        """Read what has come, until a request is whole or more must come."""
        if self._head is None and not self._read_head():
            return
        if self._read_body():
            self._handle()
        elif not self._is_handling:
            self._shared.awaiting_body.setdefault(self, time.monotonic())

    def _read_head(self) -> bool:
        """Whether the head of a request that has not been answered is complete now."""
        received, start = self._received, self._at
        while received[start : start + 1] in (b"\r", b"\n"):  # some clients end a body with an empty line
            start += 1
        self._at = start
        end = received.find(b"\r\n\r\n", start + self._searched) + 4
        if end == 3:
            if len(received) - start > _MAX_HEAD_BYTES:
                self._refuse(_head_too_large(f"more than {_MAX_HEAD_BYTES} bytes before the body"))
            self._searched = max(0, len(received) - start - 3)
            return False
        self._searched = 0
        message = Message()
        try:
            if end - start > _MAX_HEAD_BYTES:
                raise HeadTooLarge(f"{end - start} bytes before the body, at most {_MAX_HEAD_BYTES}")
            head = message.head(received[start:end])
        except HeadTooLarge as error:
            self._refuse(_head_too_large(str(error)))
            return False
        except BadHead as error:
            self._refuse(HttpError(400, "bad_request", str(error), [CLOSE]))
            return False
        self._at = end
        self._head = head
        self._shared.awaiting_head.pop(self, None)
        return self._admit(head, message)

    def _admit(self, head: RequestHead, message: Message) -> bool:
        """Whether the body of a request is worth reading; refuses the request otherwise."""
        limits = self._shared.limits
        self._problem = problem = self._shared.application.refusal(head)
        length = head.length
        if length == 0:
            return True
        if length is None:
            self._message = message
        elif length > limits.body_size:
            self._problem = problem = problem or _too_large(limits.body_size)
            # It would not be done with a gigabyte before the answer anyway.
            if length > limits.body_size * _DRAINED_LIMITS:
                self._refuse(problem)
                return False
        elif length > _SMALL_BYTES and problem is None and not self._take_room(length):
            return False
        if head.expects_continue and self._at == len(self._received):
            # A client that waits for permission needs none to be answered.
            if problem is not None:
                self._refuse(problem)
                return False
            self._transport.write(_CONTINUE)
        self._wire_size = 0
        return True

    def _read_body(self) -> bool:
        """Whether the body is whole now."""
        head = self._head
        if head is None or self._at == len(self._received):
            return head is not None and head.length == 0
        if head.length is None:
            return self._read_chunks()
        part = self._received[self._at : self._at + head.length - self._body_size]
        self._at += len(part)
        self._body_size += len(part)
        self._keep(part)
        self._forget_what_is_taken()
        return self._body_size == head.length

    def _keep(self, part: bytes) -> None:
        if self._problem is not None:
            return
        if not self._body:
            self._body = part
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += part

    def _forget_what_is_taken(self) -> None:
        if self._at == len(self._received):
            self._received, self._at = b"", 0

    def _read_chunks(self) -> bool:
        message, limit = cast(Message, self._message), self._shared.limits.body_size
        received = self._received[self._at :]
        self._received, self._at = b"", 0
        self._wire_size += len(received)
        try:
            message.feed(received)
        except BadHead as error:
            # What follows the last chunk can't be told from it, so it is not taken for a request.
            if not message.is_complete:
                self._refuse(HttpError(400, "bad_request", str(error), [CLOSE]))
                return False
            cast(RequestHead, self._head).keeps_alive = False
        self._body_size += sum(map(len, message.body))
        if self._body_size > limit:
            self._problem = self._problem or _too_large(limit)
            self._body = b""
        self._keep(b"".join(message.body))
        message.body.clear()
        # Chunks of one byte each, and what else may stand between them, are more on the wire than they hold.
        if self._wire_size > limit * _DRAINED_LIMITS and not message.is_complete:
            self._refuse(self._problem or _too_large(limit))
            return False
        is_large = self._body_size > max(_SMALL_BYTES, self._counted) and self._problem is None
        if is_large and not self._take_room(self._body_size - self._counted):
            return False
        return message.is_complete

    def _take_room(self, size: int) -> bool:
        """Whether there is room for `size` bytes more; refuses the request otherwise."""
        if size > self._shared.room:
            message = "nothing was recorded: too many large bodies are under way; send it again"
            self._refuse(HttpError(503, "too_many_uploads", message, [("retry-after", "1"), CLOSE]))
            return False
        self._shared.room -= size
        self._counted += size
        return True

    def _give_room_back(self) -> None:
        self._shared.room += self._counted
        self._counted = 0

    # Answering.

    def _refuse(self, problem: HttpError) -> None:
        """Answer without reading on."""
        self._problem = problem
        if self._head is None:
            self._head = RequestHead(*_UNREADABLE, {})
        self._head.keeps_alive = False
        self._shared.awaiting_head.pop(self, None)
        self._body = b""
        self._handle()

    def _handle(self) -> None:
        shared, head = self._shared, cast(RequestHead, self._head)
        self._is_handling = True
        shared.awaiting_body.pop(self, None)
        body, self._body = bytes(self._body), b""
        # Kept, since the event loop itself only knows of tasks while they run.
        self._task = shared.loop.create_task(self._answer(head, body, self._problem))

    async def _answer(self, head: RequestHead, body: bytes, problem: HttpError | None) -> None:
        try:
            self._write(head, await self._shared.application.answer(head, body, problem))
        except Exception:  # a bug, which must leave no client waiting
            self.abort()
            log.exception("a request got no answer", path=head.path[:200])
        except BaseException:
            self.abort()
            raise

    def _write(self, head: RequestHead, answer: Answer) -> None:
        shared, transport = self._shared, self._transport
        # Whether all of this request was read, so that what comes next is another one.
        is_read = self._body_size == head.length or (self._message is not None and self._message.is_complete)
        if self._message is not None:
            self._message.end()
        self._head = self._message = self._problem = None
        self._forget_what_is_taken()
        self._body_size = 0
        self._is_handling = False
        if self._counted:
            self._give_room_back()
        if transport.is_closing():
            return
        keeps = head.keeps_alive and is_read and not answer.closes and not shared.is_draining
        keeps = keeps and (not self._has_ended or self._at < len(self._received))
        status, body = answer.status, answer.body
        head_lines = [_STATUS_LINES[status], shared.date(), answer.headers]
        if status not in _BODILESS:
            head_lines.append(b"content-length: %d\r\n" % len(body))
        if not keeps and not answer.closes:
            head_lines.append(b"connection: close\r\n")
        elif head.is_http_1_0 and keeps:
            head_lines.append(b"connection: keep-alive\r\n")
        head_lines.append(b"\r\n")
        if head.method != "HEAD" and status not in _BODILESS:
            head_lines.append(body)
        transport.write(b"".join(head_lines))
        if keeps:
            self._next()
        else:
            self._close(is_read=is_read)

    def _next(self) -> None:
        """Turn to the next request."""
        if not self._can_write:
            return  # until the client takes its answers; the kernel bounds how long that may last
        self._await_head()
        if self._at < len(self._received):
            self._go_on()
        if self._is_paused and not (self._is_handling and len(self._received) - self._at > _AHEAD_BYTES):
            self._is_paused = False
            self._transport.resume_reading()
        if self._has_ended and not self._is_handling and not self.eof_received():
            self._transport.close()

    def _close(self, *, is_read: bool) -> None:
        if self._has_ended or (is_read and self._at == len(self._received)):
            self._transport.close()
            return
        # Closed while bytes are unread, a connection is reset, and the answer may be lost on its way.
        self._is_lingering = True
        self._wire_size = 0
        self._received, self._at = b"", 0
        self._shared.lingering[self] = time.monotonic()
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._transport.write_eof()


def _do_nothing() -> None:
    pass


def _too_large(limit: int) -> HttpError:
    message = f"the body is larger than {limit} bytes, compressed or not; send it in several requests"
    return HttpError(413, "body_too_large", message, [CLOSE])


def _head_too_large(reason: str) -> HttpError:
    return HttpError(431, "head_too_large", f"too much in the head of the request: {reason}", [CLOSE])
