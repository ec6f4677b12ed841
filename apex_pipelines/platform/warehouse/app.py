"""ClickHouse's HTTP interface: from a request to its answer.

Belongs here: what is asked, whether it may run, and how its result gets to the client. Does not belong here:
sockets and signals (`server`, `http1`), the engine (`execution`), reading requests (`request`), how an answer
looks (`response`).

A request lives in the thread of its connection, and its statement runs in another: the connection's thread
hands an insert its data, or forwards a result, says how far it is, and notices when the client goes away.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.access import ReadOnlyGuard, User, authenticate
from apex_pipelines.platform.warehouse.engine import Engine, Progress
from apex_pipelines.platform.warehouse.errors import QueryError, exception_tag, mid_stream_exception
from apex_pipelines.platform.warehouse.execution import Query, ResultPipe
from apex_pipelines.platform.warehouse.http1 import ClientGone, Head, HttpConnection
from apex_pipelines.platform.warehouse.multipart import Form, is_multipart, read_form
from apex_pipelines.platform.warehouse.request import Body, Request, external_table, is_small_number
from apex_pipelines.platform.warehouse.response import Answer, plain_answer
from apex_pipelines.platform.warehouse.sessions import Session, SessionStore, timeout_seconds

log = get_logger(__name__)

# A query waits this long for a place.
QUEUE_SECONDS = 5.0
MAX_RUNNING = 64
# Of these, inserts may be waiting for their clients' data, and the read-only user's may be slow.
MAX_INSERTS = 48
MAX_READ_ONLY = 32
# A result up to this size is answered whole, with its summary, and with the right status when it fails.
BUFFER_BYTES = 1 << 20
# A result that grows slowly is not held back longer than this after its first bytes.
BUFFER_SECONDS = 0.5
# With wait_end_of_query, a result beyond the first size waits on disk, and beyond the second it is refused.
SPOOL_BYTES = 16 << 20
MAX_SPOOLED_BYTES = 1 << 30
DEFAULT_PROGRESS_MS = 100
DEFAULT_MAX_QUERY_SIZE = 262_144

_Running = Future[tuple[bytes, Progress]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes
    ----------
    body_bytes : int
        Largest request body, as it travels.
    min_free_bytes : int
        With less free disk than this, nothing is written any more.
    """

    body_bytes: int
    min_free_bytes: int


class WarehouseApp:
    """The interface over one engine.

    Parameters
    ----------
    users : iterable of User
        Who may ask.
    folder : Path
        The data folder, whose disk is watched.
    spool_folder : Path
        Where results and external data wait that are too large to be held.
    """

    def __init__(
        self, engine: Engine, users: Iterable[User], limits: Limits, folder: Path, spool_folder: Path
    ) -> None:
        self._engine = engine
        self._users = tuple(users)
        self._limits = limits
        self._folder = folder
        self._spool_folder = spool_folder
        self._guard = ReadOnlyGuard(
            engine.table_functions(), engine.reaching_functions(), engine.text_settings()
        )
        self._pool = ThreadPoolExecutor(MAX_RUNNING, thread_name_prefix="query")
        self._lock = threading.Condition()
        self._running: dict[str, str] = {}  # kind by query id
        self._stopping = False
        self.sessions = SessionStore()

    def handle(self, connection: HttpConnection, head: Head) -> None:
        """Answer one request.

        Raises
        ------
        ClientGone
            When nobody is there to be answered.
        """
        request = Request.from_head(head)
        if request.method == "OPTIONS":
            plain_answer(connection, 204, "", Allow="OPTIONS, GET, HEAD, POST")
        elif request.method not in ("GET", "HEAD", "POST"):
            plain_answer(connection, 501, f"Method {request.method} is not supported\n")
        elif request.path == "/ping" or request.is_greeting:
            plain_answer(connection, 200, "Ok.\n")
        elif request.path == "/replicas_status":
            # A server answers 503 here when it can't be relied on for reading and writing.
            full = self._disk_full()
            plain_answer(connection, 503 if full else 200, full or "Ok.\n")
        elif request.path != "/":
            text = f"There is no handle {request.path}\n\nUse / or /ping for health checks.\n"
            plain_answer(connection, 404, text)
        else:
            self._serve_query(connection, request)

    def refuse_new(self) -> None:
        """Begin no further query."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()

    def idle_within(self, seconds: float) -> bool:
        """Wait for running queries to end; False when one takes longer."""
        deadline = time.monotonic() + seconds
        while (running := self._queries()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not running

    def cancel_all(self, seconds: float) -> bool:
        """Have the engine end what runs, also what it does not know of yet; False when one outlives that."""
        log.warning("cancelling queries that did not end in time", queries=self._queries())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(QueryError):
                self._engine.kill(self._queries())
            if self.idle_within(0.25):
                return True
        return False

    def close(self) -> None:
        """Free what is held, when nothing runs any more."""
        self._pool.shutdown(wait=True)
        self.sessions.close()

    def _queries(self) -> list[str]:
        with self._lock:
            return sorted(self._running)

    def _disk_full(self) -> str:
        """What to say when there is too little disk left to write; empty when there is enough."""
        free = shutil.disk_usage(self._folder).free
        if free >= self._limits.min_free_bytes:
            return ""
        return (
            f"Not enough space: {free} bytes are free on the disk of {self._folder}, and "
            f"{self._limits.min_free_bytes} are kept (APEX_WAREHOUSE_MIN_FREE_BYTES). Reading goes on.\n"
        )

    # -- one query ----------------------------------------------------------------------------------------

    def _serve_query(self, connection: HttpConnection, request: Request) -> None:
        answer = Answer(request, connection, self._engine)
        try:
            user = authenticate(request, self._users)
            request.check_role()
            body = Body(request, connection, self._limits.body_bytes)
            form = read_form(request, body, self._spool_folder) if is_multipart(request) else Form()
            with form:
                request = request.with_form(form.fields, form.files)
                self._run(request, user, form, body, connection, answer)
        except QueryError as error:
            answer.fail(error)
        except ClientGone:
            log.info("client went away", query_id=request.query_id)
            raise
        # The session and the id are free again before the client has read the last of its answer.
        answer.release()

    def _run(
        self,
        request: Request,
        user: User,
        form: Form,
        body: Body,
        connection: HttpConnection,
        answer: Answer,
    ) -> None:
        # Read before a place is taken: a slow client must not hold one with a statement that never ends.
        statement, begun = _read_statement(request, body)
        self._refuse(request, user, statement)
        tables = [external_table(request, *item) for item in form.files.items()]
        with self._admitted(request, user, statement), self._session(request, user) as session:
            query = Query(self._engine, self._guard, request, user, session, tables)
            if statement.takes_data:
                run = query.insert if statement.kind is sql.Kind.INSERT else query.insert_from_input
                answer.done(run(statement, begun, body))
            else:
                self._relay(query, statement, connection, answer)

    @contextmanager
    def _admitted(self, request: Request, user: User, statement: sql.Statement) -> Iterator[None]:
        """A place among the running queries."""
        kind = "insert" if statement.takes_data else "read-only" if user.read_only else "other"
        most = {"insert": MAX_INSERTS, "read-only": MAX_READ_ONLY}.get(kind, MAX_RUNNING)
        with self._lock:

            def free() -> bool:
                alike = sum(1 for other in self._running.values() if other == kind)
                return self._stopping or (len(self._running) < MAX_RUNNING and alike < most)

            if not self._lock.wait_for(free, QUEUE_SECONDS):
                raise QueryError(
                    "TOO_MANY_SIMULTANEOUS_QUERIES",
                    f"Too many simultaneous queries. Maximum: {MAX_RUNNING}, "
                    f"{MAX_INSERTS} inserts with data, {MAX_READ_ONLY} of read-only users",
                )
            if self._stopping:
                raise QueryError("ABORTED", "The warehouse is stopping")
            if request.query_id in self._running:
                raise QueryError(
                    "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                    f"Query with id = {request.query_id} is already running.",
                )
            self._running[request.query_id] = kind
        try:
            yield
        finally:
            with self._lock:
                del self._running[request.query_id]
                self._lock.notify_all()

    @contextmanager
    def _session(self, request: Request, user: User) -> Iterator[Session | None]:
        """The session that the request names, reserved; None when it names none."""
        seconds = timeout_seconds(request.params.get("session_timeout"))
        name = request.params.get("session_id")
        if not name:
            yield None
            return
        must_exist, close = request.flag("session_check"), request.flag("close_session")
        with self.sessions.reserved(user.name, name, seconds, must_exist=must_exist, close=close) as session:
            # A read-only connection can't be given back as it was, and has nothing to be kept.
            yield None if user.read_only else session

    def _relay(
        self, query: Query, statement: sql.Statement, connection: HttpConnection, answer: Answer
    ) -> None:
        pipe = ResultPipe()
        try:
            running = self._pool.submit(query.run_into, pipe.write_end, statement)
        except RuntimeError:
            pipe.close_both()
            raise
        try:
            _Relay(query, statement, pipe, running, connection, answer, self._spool_folder).run()
        finally:
            pipe.close()
            self._cancel(query.request.query_id, running)

    def _refuse(self, request: Request, user: User, statement: sql.Statement) -> None:
        """Stop what may not run, before any of its data is read."""
        if user.read_only and statement.kind is not sql.Kind.ROWS:
            raise QueryError("READONLY", f"Cannot execute query in readonly mode: {user.name} only reads.")
        if request.method in ("GET", "HEAD") and statement.modifies:
            raise QueryError(
                "READONLY",
                "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. "
                "You should use method POST for modifying queries.",
            )
        if request.flag("readonly") and statement.modifies:
            raise QueryError("READONLY", "Cannot execute query in readonly mode.")
        if statement.writes and (full := self._disk_full()):
            raise QueryError("NOT_ENOUGH_SPACE", full.strip())

    def _cancel(self, query_id: str, running: _Running) -> None:
        """Wait for a worker to end; one whose result nobody reads any more is told to, until it does."""
        while not running.done():
            with suppress(QueryError):
                self._engine.kill([query_id])
            wait_for([running], timeout=0.25)


class _Relay:
    """Forwards a running statement's result to the client."""

    def __init__(
        self,
        query: Query,
        statement: sql.Statement,
        pipe: ResultPipe,
        running: _Running,
        connection: HttpConnection,
        answer: Answer,
        spool_folder: Path,
    ) -> None:
        self._query = query
        self._statement = statement
        self._pipe = pipe
        self._running = running
        self._connection = connection
        self._answer = answer
        self._spool_folder = spool_folder
        self._format = statement.format or query.request.default_format
        self._wait_for_end = query.request.flag("wait_end_of_query")
        self._progress_seconds = _progress_seconds(query.request)

    def run(self) -> None:
        """Forward until the statement has ended.

        Raises
        ------
        QueryError
            When it fails and nothing of its result was sent.
        ClientGone
            When the client is gone.
        """
        with self._read_first() as (buffered, ended):
            if not ended:
                self._stream(buffered.read())
                return
            result, progress = self._running.result()
            if self._statement.kind is sql.Kind.ROWS:
                small = buffered.tell() <= BUFFER_BYTES
                buffered.seek(0)
                self._answer.whole(self._format, buffered.read() if small else buffered, progress)
            elif result or self._statement.answers:
                self._answer.whole(self._format, result, progress)
            else:
                self._answer.done(progress)

    @contextmanager
    def _read_first(self) -> Iterator[tuple[IO[bytes], bool]]:
        """The beginning of the result, and whether it is all."""
        deadline: float | None = None
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self._spool_folder)) as buffered:
            while True:
                if not self._await_more(deadline):
                    break
                piece = self._pipe.read()
                if not piece:
                    yield buffered, True
                    return
                buffered.write(piece)
                if self._wait_for_end:
                    self._check_spooled(buffered.tell())
                    continue
                if deadline is None:
                    deadline = time.monotonic() + BUFFER_SECONDS
                if buffered.tell() >= BUFFER_BYTES:
                    break
            buffered.seek(0)
            yield buffered, False

    def _check_spooled(self, size: int) -> None:
        if size > MAX_SPOOLED_BYTES:
            raise QueryError(
                "TOO_MANY_ROWS_OR_BYTES",
                f"The result is larger than the {MAX_SPOOLED_BYTES} bytes that wait_end_of_query=1 holds "
                "back; ask without it",
            )

    def _await_more(self, deadline: float | None) -> bool:
        """Wait until there is something to read, saying how far the query is; False at the deadline."""
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            step = self._progress_seconds
            seconds = step if left is None else left if step is None else min(left, step)
            if self._connection.wait(self._pipe.read_end, seconds):
                return True
            if left is not None and left <= (step or 0.0):
                return False
            if step is not None:
                self._answer.progress(self._query.live)

    def _stream(self, buffered: bytes) -> None:
        """Send a result that is too large or too slow to be held, as it comes."""
        tag = exception_tag()
        encoder = self._answer.start(self._format, tag, self._query.live)
        self._answer.send_piece(encoder.feed(buffered))
        while self._connection.wait(self._pipe.read_end, None) and (piece := self._pipe.read()):
            self._answer.send_piece(encoder.feed(piece))
        last = b""
        try:
            self._running.result()
        except QueryError as error:
            last = encoder.feed(mid_stream_exception(self._answer.with_version(error), tag))
        self._answer.end(last + encoder.finish())


def _progress_seconds(request: Request) -> float | None:
    """How often progress is to be told in headers; None for never."""
    if not request.flag("send_progress_in_http_headers"):
        return None
    wanted = request.params.get("http_headers_progress_interval_ms", "")
    return ((int(wanted) if is_small_number(wanted) else 0) or DEFAULT_PROGRESS_MS) / 1000


def _read_statement(request: Request, body: Body) -> tuple[sql.Statement, bytes]:
    """The statement, from URL and body together, and what of an insert's data was read along with it."""
    text = bytearray(request.params.get("query", "").encode("utf-8", "surrogateescape"))
    if text:
        text += b"\n"
    wanted = request.params.get("max_query_size", "")
    limit = (int(wanted) if is_small_number(wanted) else 0) or DEFAULT_MAX_QUERY_SIZE
    look_at = 0
    while True:
        piece = body.next()
        text += piece or b""
        if piece is not None and len(text) < min(look_at, limit):
            continue  # pieces may be a byte each: read anew only what has grown to twice the size
        look_at = 2 * len(text)
        statement = sql.parse(bytes(text), complete=piece is None)
        if statement is not None and statement.data_start:
            return statement, bytes(text[statement.data_start :])
        if len(text) > limit + 1:
            raise QueryError(
                "SYNTAX_ERROR",
                f"Syntax error: Max query size exceeded: {limit} bytes "
                "(can be increased with the `max_query_size` setting)",
            )
        if statement is not None:
            return statement, b""
