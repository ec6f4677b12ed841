"""One query on its connection: its settings, its temporary tables, and the ways to run it.

Belongs here: what happens inside the engine for one request. Does not belong here: HTTP answers.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.access import ReadOnlyGuard, User
from apex_pipelines.platform.warehouse.engine import (
    QUERY_ID_SETTING,
    Connection,
    Engine,
    ExternalTable,
    Insert,
    Progress,
    open_pipe,
    write_all,
)
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import identifier, replace_word, substitutes, tokens
from apex_pipelines.platform.warehouse.native import (
    RevisedBlocks,
    described,
    describing,
    revise_document,
)
from apex_pipelines.platform.warehouse.request import Body, Request, is_small_number
from apex_pipelines.platform.warehouse.sessions import Session

log = get_logger(__name__)

# Bytes handed to the engine, and taken from it, at a time.
STEP_BYTES = 1 << 20
# What is added to a statement's text on its way to the engine takes less than this.
OWN_TEXT_BYTES = 256
# A server flushes this format after every block, and block after block is how it is written.
_BLOCKWISE_FORMAT = "native"
_BLOCKWISE_KEYWORDS = (b"SELECT", b"WITH", b"FROM", b"(")


@dataclass(slots=True)
class Query:
    """A query on its way: who asked, in which session, on which connection.

    Attributes
    ----------
    live : mapping of str to int
        How far the engine has come, by its own names and in its units; replaced as it goes on.
    """

    engine: Engine
    guard: ReadOnlyGuard
    request: Request
    user: User
    session: Session | None = None
    tables: list[ExternalTable] = field(default_factory=list)
    live: Mapping[str, int] = field(default_factory=dict)
    _current: Connection | None = None
    _restore: list[bytes] = field(default_factory=list)

    def insert(self, statement: sql.Statement, begun: bytes, body: Body) -> Progress:
        """Stream `begun` and the rest of the body into an insert; on disk when this returns."""
        try:
            insert = Insert(self._begin(statement), statement, self._kill)
            return _push(insert, chain((begun,), body.pieces()))
        finally:
            self._end()

    def insert_from_input(self, statement: sql.Statement, begun: bytes, body: Body) -> Progress:
        """INSERT ... SELECT ... FROM input(...): a temporary table with the data takes the place of input."""
        name = f"_input_{secrets.token_hex(8)}"
        try:
            connection = self._begin(statement)
            pieces = chain((begun,), body.pieces())
            self._create_temporary(name, statement.input_structure, statement.input_format, pieces)
            return connection.query(statement.with_input(name))[1]
        finally:
            self._end()

    def run_into(self, write_end: int, statement: sql.Statement) -> tuple[bytes, Progress]:
        """Run any other statement; its rows go into a pipe, whose write end is closed at the end.

        Returns
        -------
        bytes
            Result of a statement that is no query and has one, whole: those are small.
        Progress
            What the statement did.
        """
        try:
            format_name = statement.format or self.request.default_format
            connection = self._begin(statement)
            connection.watch(self._note)
            if format_name.lower() == _BLOCKWISE_FORMAT and statement.answers:
                return self._native_into(write_end, statement, connection)
            if statement.kind is sql.Kind.COMMAND:
                return connection.query(_command_text(statement), format_name)
            return b"", connection.query_into(write_end, statement, self.request.default_format)
        finally:
            os.close(write_end)
            self._end()

    def _native_into(
        self, write_end: int, statement: sql.Statement, connection: Connection
    ) -> tuple[bytes, Progress]:
        """Blocks as they are made, in the form of the client's revision; or the one of a short answer."""
        revision = self.request.native_revision
        if statement.keyword not in _BLOCKWISE_KEYWORDS:
            result, progress = connection.query(_command_text(statement), "Native")
            result = revise_document(revision, result)
            if statement.kind is sql.Kind.COMMAND:
                return result, progress
            write_all(write_end, result)
            return b"", progress
        text = statement.as_sent + b" " + statement.tail
        if not revision:
            return b"", connection.stream_into(write_end, text, "Native")
        # Before the stream: another query on its connection would end it.
        columns = described(connection.query(describing(text), "JSONCompactEachRow")[0])
        return b"", connection.stream_into(write_end, text, "Native", RevisedBlocks(revision, columns).revise)

    def _note(self, progress: Mapping[str, int]) -> None:
        self.live = progress

    def _begin(self, statement: sql.Statement) -> Connection:
        """The connection, with the request's settings, parameters, database and external tables on it."""
        request = self.request
        if _names_id_setting(statement):
            raise QueryError(
                "READONLY", f"Cannot modify '{QUERY_ID_SETTING}': by it queries are found again."
            )
        if self.user.read_only:
            self.guard.check_settings(request.settings)
            self._check(statement)
        settings = self.user.allowed(request.settings)
        if is_small_number(settings.get("max_query_size", "")):
            # The limit is on what the client sent; the text that the engine gets says some more.
            settings["max_query_size"] = str(int(settings["max_query_size"]) + OWN_TEXT_BYTES)
        if self.session is None:
            connection = self._current = self.engine.connect()
            settings = {**self.user.defaults, **settings}
        else:
            connection = self._current = self._session_connection(statement, self.session)
            # Nothing leads back from it on this connection; what it forbids has been refused already.
            settings.pop("readonly", None)
            self._restore += connection.snapshot(
                [QUERY_ID_SETTING, *settings], with_database=bool(request.database)
            )
        connection.apply(
            {**settings, QUERY_ID_SETTING: request.query_id}, request.query_parameters, request.database
        )
        for table in self.tables:
            pieces = iter(partial(table.data.read, STEP_BYTES), b"")
            self._create_temporary(table.name, table.structure, table.format, pieces)
        if self.user.read_only:
            connection.query(b"SET readonly = 1")
        return connection

    def _session_connection(self, statement: sql.Statement, session: Session) -> Connection:
        if session.connection is None:
            session.connection = self.engine.connect()
            session.connection.apply(self.user.defaults, {}, None)
        given = self.request.query_parameters
        for name in sorted(session.parameters - given.keys()):
            if substitutes(statement.text, name):
                raise QueryError("UNKNOWN_QUERY_PARAMETER", f"Substitution `{name}` is not set.")
        session.parameters |= given.keys()
        return session.connection

    def _check(self, statement: sql.Statement) -> None:
        """Have the guard read the statement and the external tables' structures, as the engine reads them."""
        # On a connection of its own: the request's settings could change what the engine says of its query.
        with self.engine.connected() as connection:
            connection.apply({"max_query_size": "0"}, {}, None)
            for table in self.tables:
                columns = table.structure.encode("utf-8", "surrogateescape")
                self.guard.check_names(connection.canonical(b"CREATE TABLE t (%s) ENGINE = Null" % columns))
            self.guard.check(
                statement,
                connection.canonical(statement.text + b" " + statement.tail),
                self.request.query_parameters,
            )

    def _create_temporary(self, name: str, structure: str, format_name: str, pieces: Iterable[bytes]) -> None:
        assert self._current is not None  # noqa: S101 - `_begin` has set it
        self._current.create_temporary(name, structure)
        self._restore.append(b"DROP TEMPORARY TABLE IF EXISTS " + identifier(name))
        statement = sql.Statement(sql.Kind.INSERT, b"INSERT INTO " + identifier(name), b"INSERT", format_name)
        _push(Insert(self._current, statement, self._kill), pieces)

    def _kill(self) -> bool:
        return self.engine.kill([self.request.query_id])

    def _end(self) -> None:
        """Undo `_begin`: close the connection, or leave the session as it was before."""
        if self._current is None:
            return
        if self.session is None:
            self._current.close()
        else:
            try:
                for text in self._restore:
                    self._current.query(text)
            except QueryError as error:
                # What the statement did is done, and its answer stands; the session begins anew.
                log.warning(
                    "a session could not be given back as it was",
                    query_id=self.request.query_id,
                    error=error.message,
                )
                self.session.close()


def _names_id_setting(statement: sql.Statement) -> bool:
    name = QUERY_ID_SETTING.encode()
    text = statement.text + b" " + statement.tail
    if name not in text:
        return False
    found = tokens(text)
    return any(token.text == name.upper() and after.text == b"=" for token, after in pairwise(found))


def _command_text(statement: sql.Statement) -> bytes:
    text = statement.text
    if statement.keyword == b"KILL":
        text = replace_word(text, b"query_id", b"Settings['%s']" % QUERY_ID_SETTING.encode())
    return text + b" " + statement.tail


def _push(insert: Insert, pieces: Iterable[bytes]) -> Progress:
    """Push data into an insert and commit it; anything that goes wrong drops what is not yet written."""
    try:
        pending = bytearray()
        for piece in pieces:
            pending += piece
            if len(pending) >= STEP_BYTES:
                insert.append(bytes(pending))
                pending.clear()
        if pending:
            insert.append(bytes(pending))
        return insert.finish()
    except BaseException:
        with suppress(QueryError):
            insert.cancel()
        raise


class ResultPipe:
    """The pipe through which a result comes. The write end is closed by who writes to it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = open_pipe()

    def read(self) -> bytes:
        """What there is, at least a byte, at most a step; empty at the end."""
        return os.read(self.read_end, STEP_BYTES)

    def close(self) -> None:
        """Stop reading; a writer that is still there is no longer waited for."""
        os.close(self.read_end)

    def close_both(self) -> None:
        """Close a pipe that nobody writes to."""
        os.close(self.write_end)
        self.close()
