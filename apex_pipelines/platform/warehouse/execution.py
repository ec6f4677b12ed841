"""One query in a worker thread: its connection, its settings, and the three ways to run it.

Belongs here: what blocks. Does not belong here: the event loop, HTTP answers.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.engine import (
    QUERY_ID_SETTING,
    Connection,
    Engine,
    ExternalTable,
    Insert,
    Progress,
    open_pipe,
)
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import identifier, replace_word
from apex_pipelines.platform.warehouse.request import Body, Request
from apex_pipelines.platform.warehouse.sessions import Session

# Bytes handed to the engine, and taken from it, at a time.
STEP_BYTES = 1 << 20


@dataclass(slots=True)
class Query:
    """A query on its way: who asked, in which session, on which connection. For one thread at a time."""

    engine: Engine
    request: Request
    session: Session | None
    tables: list[ExternalTable] = field(default_factory=list)
    _current: Connection | None = None
    _restore: list[bytes] = field(default_factory=list)

    def insert(self, statement: sql.Statement, begun: bytes, body: Body) -> Progress:
        """Stream `begun` and the rest of the body into an insert; on disk when this returns."""
        try:
            insert = self._begin().insert(statement.text, statement.input_format)
            return _push(insert, chain((begun,), body.blocking_pieces()))
        finally:
            self._end()

    def insert_from_input(self, statement: sql.Statement, begun: bytes, body: Body) -> Progress:
        """INSERT ... SELECT ... FROM input(...): a temporary table with the data takes the place of input."""
        name = f"_input_{secrets.token_hex(8)}"
        pieces = chain((begun,), body.blocking_pieces())
        try:
            connection = self._begin()
            self._create_temporary(name, statement.input_structure, statement.input_format, pieces)
            return connection.query(statement.with_input(name))[1]
        finally:
            self._end()

    def command(self, statement: sql.Statement) -> tuple[bytes, Progress]:
        """Run a statement whose result, if any, is small."""
        text = statement.text
        if statement.keyword == b"KILL":
            text = replace_word(text, b"query_id", b"Settings['%s']" % QUERY_ID_SETTING.encode())
        format_name = statement.format or self.request.default_format
        try:
            return self._begin().query(text + b" " + statement.tail, format_name)
        finally:
            self._end()

    def rows(self, statement: sql.Statement, write_end: int) -> Progress:
        """Run a statement with its result written to a pipe; the write end is closed at the end."""
        try:
            return self._begin().query_into(write_end, statement, self.request.default_format)
        finally:
            os.close(write_end)
            self._end()

    def _begin(self) -> Connection:
        """The connection, with the request's settings, parameters, database and external tables on it."""
        request = self.request
        if self.session is None:
            connection = self._current = self.engine.connect()
        else:
            if self.session.connection is None:
                self.session.connection = self.engine.connect()
            connection = self._current = self.session.connection
            self._restore += connection.snapshot(request.settings, with_database=bool(request.database))
        connection.apply(
            {QUERY_ID_SETTING: request.query_id, **request.settings},
            request.query_parameters,
            request.database,
        )
        for table in self.tables:
            pieces = iter(partial(table.data.read, STEP_BYTES), b"")
            self._create_temporary(table.name, table.structure, table.format, pieces)
        return connection

    def _create_temporary(self, name: str, structure: str, format_name: str, pieces: Iterable[bytes]) -> None:
        self._restore.append(b"DROP TEMPORARY TABLE IF EXISTS " + identifier(name))
        assert self._current is not None  # noqa: S101 - `_begin` has set it
        self._current.create_temporary(name, structure)
        _push(self._current.insert(b"INSERT INTO " + identifier(name), format_name), pieces)

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
            except QueryError:
                # A session that can't be given back as it was must not be given back at all.
                self._current.close()
                self.session.connection = None
                raise


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
    """The pipe through which a result comes.

    The read end can be closed while another thread reads from it: it is closed for good after that read.
    """

    def __init__(self) -> None:
        self._read_end, self.write_end = open_pipe()
        self._lock = threading.Lock()
        self._closed = False

    def read(self) -> bytes:
        """What there is, at least a byte, at most a step; empty at the end."""
        with self._lock:
            return b"" if self._closed else os.read(self._read_end, STEP_BYTES)

    def close(self) -> None:
        """Stop reading; a writer that is still there is no longer waited for."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._read_end)
