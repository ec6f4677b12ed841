"""The embedded engine: its connections, and what is run on one of them.

Belongs here: everything that touches chDB. Does not belong here: HTTP.

One engine lives in a process and serves any number of connections in parallel, one statement at a time on
each. A connection costs a tenth of a millisecond, so every request outside a session gets a fresh one, and
with it no setting, database or temporary table of anybody else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from apex_pipelines.platform.warehouse import configuration
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import identifier, string_literal
from apex_pipelines.platform.warehouse.sql import Statement
from apex_pipelines.settings import Settings

# The engine gives each query an id of its own choosing. The id that the client knows travels in this setting,
# which only stream-like tables (Kafka and its kin) read and this build has none of; through it a running
# query is found again.
QUERY_ID_SETTING = "stream_like_engine_insert_queue"

_SETTING_NAME = re.compile(r"[\w$]+")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a finished statement did; rows, bytes and nanoseconds."""

    read_rows: int = 0
    read_bytes: int = 0
    total_rows_to_read: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """Data that came with a query, to be seen by it as a temporary table."""

    name: str
    structure: str
    format: str
    data: IO[bytes]


class Connection:
    """One connection to the engine. Not for two threads at once."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def close(self) -> None:
        """Close it; its temporary tables go with it."""
        self._raw.close()

    def apply(self, settings: Mapping[str, str], parameters: Mapping[str, str], database: str | None) -> None:
        """Apply settings, query parameters and database to what runs next on this connection."""
        items = [*settings.items(), *((f"param_{name}", value) for name, value in parameters.items())]
        # Under readonly no setting can follow, so it goes last.
        items.sort(key=lambda item: item[0] == "readonly")
        for name, _ in items:
            if _SETTING_NAME.fullmatch(name) is None:
                raise QueryError(
                    "UNKNOWN_SETTING", f"Setting {name} is neither a builtin setting nor a parameter"
                )
        if database:
            self.query(b"USE " + identifier(database))
        if items:
            assignments = (identifier(name) + b" = " + string_literal(value) for name, value in items)
            self.query(b"SET " + b", ".join(assignments))

    def snapshot(self, names: Iterable[str], *, with_database: bool) -> tuple[bytes, ...]:
        """Statements that give the session back what `apply` with these settings is about to change."""
        statements = []
        if with_database:
            database, _ = self.query(b"SELECT currentDatabase() FORMAT RawBLOB")
            statements.append(b"USE " + identifier(database.decode("utf-8", "surrogateescape")))
        wanted = b", ".join(string_literal(name) for name in names)
        if wanted:
            rows, _ = self.query(
                b"SELECT name, changed, value FROM system.settings "
                b"WHERE name IN (%s) FORMAT JSONCompactEachRow" % wanted
            )
            for line in rows.splitlines():
                name, changed, value = json.loads(line)
                new = string_literal(value) if changed else b"DEFAULT"
                statements.append(b"SET " + name.encode() + b" = " + new)
        return tuple(statements)

    def query(self, text: bytes, format_name: str = "TabSeparated") -> tuple[bytes, Progress]:
        """Run `text`; its result, whole, and what it did."""
        started = time.perf_counter_ns()
        try:
            result = self._raw.query(text, format_name)
        except Exception as error:
            raise QueryError.from_engine(error) from error
        return result.bytes(), _progress(result, started)

    def watch(self, callback: Callable[[Mapping[str, int]], None]) -> None:
        """Have `callback` told, a few times a second, how far the statement has come that runs here."""
        self._raw.set_progress_callback(callback)

    def canonical(self, text: bytes) -> bytes:
        """A statement as the engine itself would write it: one way to quote, no comments, plain blanks."""
        literal = b"'" + text.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
        try:
            return self.query(b"SELECT formatQuerySingleLine(" + literal + b") FORMAT RawBLOB")[0]
        except QueryError as error:
            message = error.message.split(": In scope SELECT formatQuerySingleLine")[0]
            raise QueryError(error.name, "", code=error.code, message=f"{message} ({error.name})") from error

    def stream_into(
        self, write_end: int, text: bytes, format_name: str, revise: Callable[[bytes], bytes] | None = None
    ) -> Progress:
        """Run `text` with every block of its result written to a pipe as soon as it is there.

        For formats in which the results of two blocks, one after the other, are the result of both. `revise`
        may give a block another form.
        """
        started = time.perf_counter_ns()
        rows = size = read_rows = read_bytes = 0
        try:
            with self._raw.send_query(text, format_name) as stream:
                for block in stream:
                    data = block.bytes()
                    write_all(write_end, revise(data) if revise else data)
                    rows += int(block.rows_read())
                    size += int(block.bytes_read())
                    read_rows += int(block.storage_rows_read())
                    read_bytes += int(block.storage_bytes_read())
        except BrokenPipeError as error:
            raise QueryError("QUERY_WAS_CANCELLED", "Query was cancelled: nobody reads its result") from error
        except QueryError:
            raise
        except Exception as error:
            raise QueryError.from_engine(error) from error
        return Progress(
            read_rows,
            read_bytes,
            result_rows=rows,
            result_bytes=size,
            elapsed_ns=time.perf_counter_ns() - started,
        )

    def query_into(self, write_end: int, statement: Statement, default_format: str) -> Progress:
        """Run a statement with its result written to a pipe.

        The engine itself formats the whole result, as a server does, and waits where nobody reads: memory
        stays flat however large the result is.
        """
        # The outer format is not "Null": SHOW is rewritten inside, to a query that would then write nothing.
        return self.query(statement.into_file(f"/dev/fd/{write_end}", default_format))[1]

    def create_temporary(self, name: str, structure: str) -> None:
        """Make a temporary table, which lives as long as the connection."""
        # The structure is the client's word: inside a literal it can't become anything else.
        columns = string_literal(structure)
        self.query(
            b"CREATE TEMPORARY TABLE " + identifier(name) + b" AS SELECT * FROM null(" + columns + b")"
        )


class Insert:
    """An insert whose data is being pushed in through a pipe; waits as long as the engine takes to read it.

    Not chDB's own streamed insert: that one answers with success when the table refuses a block, be it for
    a full disk, a constraint or a view's exception.

    Parameters
    ----------
    kill : callable
        Asks the engine to cancel it, and says whether it was found there.
    """

    def __init__(self, connection: Connection, statement: Statement, kill: Callable[[], bool]) -> None:
        self._kill = kill
        read_end, self._write_end = open_pipe()
        worker = ThreadPoolExecutor(1, thread_name_prefix="insert")

        def run() -> Progress:
            try:
                return connection.query(statement.from_file(f"/dev/fd/{read_end}"))[1]
            finally:
                os.close(read_end)  # who still writes gets a broken pipe

        try:
            self._done = worker.submit(run)
        except RuntimeError:
            os.close(read_end)
            self._close()
            raise
        finally:
            worker.shutdown(wait=False)

    def append(self, data: bytes) -> None:
        """Hand over the next bytes of the data.

        Raises
        ------
        QueryError
            When the engine has refused what came before.
        """
        try:
            write_all(self._write_end, data)
        except BrokenPipeError:
            # Says what is wrong. If nothing is, the format has an end, and what comes behind it is no data.
            self._done.result()

    def finish(self) -> Progress:
        """Commit; when this returns the rows are on disk."""
        self._close()
        return self._done.result()

    def cancel(self) -> None:
        """Drop what is not yet written; no error when the insert has ended already."""
        # The pipe's end is the end of the data: it must not come before the engine knows, whatever fails.
        pause = 0.005
        while not self._done.done():
            with contextlib.suppress(QueryError):
                if self._kill():
                    break
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        self._close()
        self._done.exception()

    def _close(self) -> None:
        end, self._write_end = self._write_end, -1
        if end >= 0:
            os.close(end)


def _progress(result: Any, started: int) -> Progress:
    return Progress(
        read_rows=int(result.storage_rows_read()),
        read_bytes=int(result.storage_bytes_read()),
        written_rows=int(result.rows_written()),
        written_bytes=int(result.bytes_written()),
        result_rows=int(result.rows_read()),
        result_bytes=int(result.bytes_read()),
        elapsed_ns=time.perf_counter_ns() - started,
    )


class Engine:
    """chDB over the data folder of `settings`. The caller holds the folder's lock.

    Attributes
    ----------
    version : str
        ClickHouse's version, such as 26.9.2.1.
    timezone : str
        Time zone of the engine, always UTC.
    host : str
        Name of this machine.
    """

    def __init__(self, settings: Settings) -> None:
        # The engine takes its time zone from the environment and nowhere else.
        os.environ["TZ"] = self.timezone = "UTC"
        time.tzset()
        config = configuration.write(settings)
        # Signals belong to the server around the engine, and that must be said before the first connection.
        native: Any = import_module("chdb._chdb")
        native.set_signal_handlers_enabled(0)
        library: Any = import_module("chdb")
        self._open = library.connect
        options = "&".join(f"{name}={value}" for name, value in configuration.CONNECTION_SETTINGS.items())
        self._url = f"{settings.warehouse_dir}?config-file={config}&{options}"
        # The engine's own database lives in memory; what it left on disk would only be in its way.
        shutil.rmtree(settings.warehouse_dir / "data" / "system", ignore_errors=True)
        # The engine lives as long as its last connection; this one keeps it alive.
        self._anchor = self.connect()
        # Cancelling must work when nothing else does any more, for want of descriptors for instance.
        self._killer = self.connect()
        self._killing = threading.Lock()
        self.version = self._column("SELECT version()")[0]
        self.host = socket.gethostname()

    def table_functions(self) -> list[str]:
        """Names of all table functions."""
        return self._column("SELECT name FROM system.table_functions")

    def text_settings(self) -> list[str]:
        """Names of the settings whose values are free text: paths, addresses, SQL."""
        return self._column(
            "SELECT name FROM system.settings WHERE type IN ('String', 'Map', 'URI', 'Dialect')"
        )

    def reaching_functions(self) -> list[str]:
        """Names of the scalar functions that read files or ask other hosts."""
        return self._column(
            "SELECT name FROM system.functions WHERE name = 'file' OR match(name, '^(ai|AI)[A-Z]')"
        )

    def _column(self, text: str) -> list[str]:
        return self._anchor.query(text.encode())[0].decode().split()

    def connect(self) -> Connection:
        """A new connection with nothing set but the defaults."""
        try:
            return Connection(self._open(self._url))
        except Exception as error:
            raise QueryError.from_engine(error) from error

    @contextlib.contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection for a while."""
        connection = self.connect()
        try:
            yield connection
        finally:
            connection.close()

    def kill(self, query_ids: Iterable[str]) -> bool:
        """Ask the engine to cancel running queries, by the ids their clients know."""
        names = b", ".join(string_literal(name) for name in query_ids)
        with self._killing:
            found, _ = self._killer.query(
                b"KILL QUERY WHERE Settings['%s'] IN (%s) ASYNC" % (QUERY_ID_SETTING.encode(), names)
            )
        return bool(found)

    def close(self) -> None:
        """Close the engine. Every other connection must be closed before."""
        self._killer.close()
        self._anchor.close()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to a pipe, waiting for its reader as often as it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def open_pipe() -> tuple[int, int]:
    """Read and write end of a pipe as large as the system lets it be, up to 1 MiB."""
    read_end, write_end = os.pipe()
    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize is not None:
        # Refused above the user's share; the default of 64 KiB only costs speed.
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_end, resize, 1 << 20)
    return read_end, write_end
