"""ClickHouse's HTTP interface as an ASGI application.

Belongs here: from a request to its answer. Does not belong here: sockets and signals (`server`), what runs in
threads (`execution`), reading requests (`request`), how an answer looks (`response`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.engine import Engine, Progress
from apex_pipelines.platform.warehouse.errors import QueryError, exception_tag, mid_stream_exception
from apex_pipelines.platform.warehouse.execution import Query, ResultPipe
from apex_pipelines.platform.warehouse.multipart import Form, is_multipart, read_form
from apex_pipelines.platform.warehouse.request import (
    Body,
    ClientGone,
    Receive,
    Request,
    authenticate,
    external_table,
)
from apex_pipelines.platform.warehouse.response import Answer, Send, plain_answer
from apex_pipelines.platform.warehouse.sessions import Session, SessionStore, timeout_seconds

log = get_logger(__name__)
T = TypeVar("T")

MAX_RUNNING = 64
# A result up to this size is answered whole, with its summary, and with the right status when it fails.
BUFFER_BYTES = 1 << 20
# A result that grows slowly is not held back longer than this.
BUFFER_SECONDS = 0.5
DEFAULT_MAX_QUERY_SIZE = 262_144


class WarehouseApp:
    """The interface over one engine.

    Parameters
    ----------
    passwords : mapping of str to str
        User to password.
    max_body_bytes : int
        Largest request body, in bytes as they travel.
    folder : Path
        Where external data is spooled that is too large to be held.
    """

    def __init__(
        self, engine: Engine, passwords: Mapping[str, str], max_body_bytes: int, folder: Path
    ) -> None:
        self._engine = engine
        self._passwords = passwords
        self._max_body_bytes = max_body_bytes
        self._folder = folder
        # A query that streams needs two threads, one that runs it and one that reads what it writes; a few
        # more cancel queries and close sessions.
        self._pool = ThreadPoolExecutor(2 * MAX_RUNNING + 8, thread_name_prefix="warehouse")
        self._sessions = SessionStore(self._close_session)
        self._running: set[str] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request.from_scope(scope)
        if request.method == "OPTIONS":
            await plain_answer(send, 204, "", allow="OPTIONS, GET, HEAD, POST")
        elif request.path in ("/ping", "/replicas_status") or request.is_greeting:
            await plain_answer(send, 200, "Ok.\n")
        elif request.path != "/":
            text = f"There is no handle {request.path}\n\nUse / or /ping for health checks.\n"
            await plain_answer(send, 404, text)
        else:
            await self._serve_query(request, receive, send)

    async def close(self, limit_seconds: float) -> bool:
        """Cancel what still runs, close sessions and threads; False when a query outlived the limit."""
        if self._running:
            log.warning("cancelling queries that did not end in time", queries=sorted(self._running))
            await self._kill(*self._running)
        deadline = asyncio.get_running_loop().time() + limit_seconds
        while self._running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        if self._running:
            return False
        for session in self._sessions.drain():
            self._close_session(session)
        self._pool.shutdown(wait=True)
        return True

    async def _in_thread(
        self, function: Callable[..., T], *arguments: Any, on_cancel: Callable[[], None] | None = None
    ) -> T:
        """Run in a thread; when cancelled, still wait for the thread, which `on_cancel` tells to hurry."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            with suppress(QueryError, ClientGone):
                await future
            raise

    async def _kill(self, *query_ids: str) -> None:
        with suppress(QueryError):
            await self._in_thread(self._engine.kill, query_ids)

    def _close_session(self, session: Session) -> None:
        if session.connection is not None:
            self._pool.submit(session.connection.close)

    async def _serve_query(self, request: Request, receive: Receive, send: Send) -> None:
        """Admit a query, run it, answer; and free its session and id before the answer ends."""
        answer = Answer(request, send, self._engine)
        session = None
        try:
            user = authenticate(request, self._passwords)
            seconds = timeout_seconds(request.params.get("session_timeout"))
            self._admit(request)
            session_id = request.params.get("session_id")
            if session_id:
                session = self._sessions.acquire(user, session_id, must_exist=request.flag("session_check"))
        except QueryError as error:
            await answer.fail(error)
            await answer.release()
            return
        self._running.add(request.query_id)
        try:
            body = Body(request, receive, self._max_body_bytes)
            await self._run(Query(self._engine, request, session), body, receive, answer)
        except QueryError as error:
            await answer.fail(error)
        except ClientGone:
            log.info("client went away", query_id=request.query_id)
            return
        finally:
            self._running.discard(request.query_id)
            if session is not None:
                close = request.flag("close_session")
                self._sessions.release(user, session, seconds, close=close)
        await answer.release()

    def _admit(self, request: Request) -> None:
        if request.flag("compress") or request.flag("decompress"):
            raise QueryError(
                "NOT_IMPLEMENTED",
                "compress=1 and decompress=1 (ClickHouse's own block format) are not supported here; use "
                "Content-Encoding, and Accept-Encoding with enable_http_compression=1",
            )
        if request.query_id in self._running:
            raise QueryError(
                "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                f"Query with id = {request.query_id} is already running.",
            )
        if len(self._running) >= MAX_RUNNING:
            raise QueryError(
                "TOO_MANY_SIMULTANEOUS_QUERIES", f"Too many simultaneous queries. Maximum: {MAX_RUNNING}"
            )

    async def _run(self, query: Query, body: Body, receive: Receive, answer: Answer) -> None:
        form: Form | None = None
        if is_multipart(query.request):
            form = await read_form(query.request, body, self._folder)
        try:
            if form is not None:
                query.request = query.request.with_form(form.fields, form.files)
                query.tables = [external_table(query.request, *item) for item in form.files.items()]
            await self._run_statement(query, body, receive, answer)
        finally:
            if form is not None:
                form.close()

    async def _run_statement(self, query: Query, body: Body, receive: Receive, answer: Answer) -> None:
        statement, begun = await _read_statement(query.request, body)
        if query.request.method in ("GET", "HEAD") and statement.modifies:
            raise QueryError(
                "READONLY",
                "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. "
                "You should use method POST for modifying queries.",
            )
        if statement.kind in (sql.Kind.INSERT, sql.Kind.INSERT_FROM_INPUT):
            run = query.insert if statement.kind is sql.Kind.INSERT else query.insert_from_input
            progress = await self._in_thread(run, statement, begun, body, on_cancel=body.abort)
            await answer.done(progress)
        elif statement.kind is sql.Kind.COMMAND:
            async with self._watching(query, receive):
                result, progress = await self._in_thread(query.command, statement)
            if result or statement.answers:
                await answer.whole(statement.format or query.request.default_format, result, progress)
            else:
                await answer.done(progress)
        else:
            await self._run_rows(query, statement, receive, answer)

    async def _run_rows(
        self, query: Query, statement: sql.Statement, receive: Receive, answer: Answer
    ) -> None:
        format_name = statement.format or query.request.default_format
        pipe = ResultPipe()
        running = asyncio.ensure_future(self._in_thread(query.rows, statement, pipe.write_end))
        try:
            async with self._watching(query, receive) as watch:
                buffered, ended = await self._read_first(pipe, query.request)
                if ended:
                    await answer.whole(format_name, buffered, await running)
                else:
                    await self._stream(answer, format_name, buffered, pipe, running, watch)
        finally:
            if not running.done():
                # Nobody reads any more: cancel the query, and let go of a writer that waits for a reader.
                await self._kill(query.request.query_id)
            self._pool.submit(pipe.close)
            with suppress(QueryError):
                await running

    async def _read_first(self, pipe: ResultPipe, request: Request) -> tuple[bytes, bool]:
        """The beginning of the result, and whether it is all of it."""
        buffered = bytearray()
        clock = asyncio.get_running_loop().time
        started: float | None = None
        wait = request.flag("wait_end_of_query")
        while piece := await self._in_thread(pipe.read):
            buffered += piece
            started = started or clock()
            if not wait and (len(buffered) >= BUFFER_BYTES or clock() - started > BUFFER_SECONDS):
                return bytes(buffered), False
        return bytes(buffered), True

    async def _stream(
        self,
        answer: Answer,
        format_name: str,
        buffered: bytes,
        pipe: ResultPipe,
        running: asyncio.Future[Progress],
        watch: _Watch,
    ) -> None:
        """Send a result that is too large to be held, as it comes."""
        tag = exception_tag()
        encode = await answer.start(format_name, tag)
        piece: bytes | None = await self._in_thread(encode.feed, buffered)

        def next_piece() -> bytes | None:
            plain = pipe.read()
            return encode.feed(plain) if plain else None

        while piece is not None:
            await answer.send_piece(piece)
            if watch.gone:
                raise ClientGone
            piece = await self._in_thread(next_piece)
        last = b""
        try:
            await running
        except QueryError as error:
            last = encode.feed(mid_stream_exception(answer.with_version(error), tag))
        await answer.end(last + encode.finish())

    def _watching(self, query: Query, receive: Receive) -> _Watch:
        return _Watch(receive, lambda: self._kill(query.request.query_id))


async def _read_statement(request: Request, body: Body) -> tuple[sql.Statement, bytes]:
    """The statement, from URL and body together, and what of an insert's data was read along with it."""
    text = request.params.get("query", "").encode("utf-8", "surrogateescape")
    if text:
        text += b"\n"
    wanted = request.params.get("max_query_size", "")
    limit = int(wanted) if wanted.isdecimal() and int(wanted) else DEFAULT_MAX_QUERY_SIZE
    while True:
        piece = await body.next()
        text += piece or b""
        statement = sql.parse(text, complete=piece is None)
        if statement is not None and statement.data_start:
            return statement, text[statement.data_start :]
        if len(text) > limit + 1:
            raise QueryError(
                "SYNTAX_ERROR",
                f"Syntax error: Max query size exceeded: {limit} bytes "
                "(can be increased with the `max_query_size` setting)",
            )
        if statement is not None:
            return statement, b""


class _Watch:
    """Watches for the client going away while its query runs, and has it cancelled then.

    To be entered when the body has been received whole.
    """

    def __init__(self, receive: Receive, cancel: Callable[[], Any]) -> None:
        self._receive = receive
        self._cancel = cancel
        self.gone = False

    async def __aenter__(self) -> _Watch:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.gone:
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        await self._cancel()
