"""The embedded engine: its configuration, its connections, and what is run on one of them.

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
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import identifier, string_literal
from apex_pipelines.platform.warehouse.sql import Statement
from apex_pipelines.settings import Settings

# The engine gives each query an id of its own choosing. The id that the client knows travels in this setting,
# which only stream-like tables (Kafka and its kin) read and this build has none of; through it a running
# query is found again.
QUERY_ID_SETTING = "stream_like_engine_insert_queue"

# What every connection starts with; a request can say otherwise.
_CONNECTION_SETTINGS = {
    "async_insert": "0",  # acknowledge only what is on disk
    # As on a server; the embedded engine has them the other way round.
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    # An insert becomes one part of a million rows, or of this size when its rows are wide: without a limit in
    # bytes, a million rows of a kilobyte would be held in memory at once.
    "max_insert_block_size_bytes": "134217728",
    "min_insert_block_size_bytes": "134217728",
    # On few cores this costs several times the memory and gains nothing.
    "output_format_parallel_formatting": "0",
}

_SETTING_NAME = re.compile(r"[\w$]+")

_CONFIG = """<clickhouse>
  <!-- Written at each start; edits are lost. -->
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <mark_cache_size>{cache}</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>4</background_schedule_pool_size>
  <!-- Who asks right after a start must find every table, not only those that are loaded by then. -->
  <async_load_databases>false</async_load_databases>
  <merge_tree>
    <!-- An acknowledged insert is on disk: the part's files, and the folder's entry for it. -->
    <fsync_after_insert>1</fsync_after_insert>
    <fsync_part_directory>1</fsync_part_directory>
  </merge_tree>
  <query_log>
    <database>system</database>
    <table>query_log</table>
    <partition_by>toYYYYMM(event_date)</partition_by>
    <ttl>event_date + interval 14 day delete</ttl>
    <flush_interval_milliseconds>7500</flush_interval_milliseconds>
  </query_log>
</clickhouse>
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a finished statement did; rows, bytes and nanoseconds."""

    read_rows: int = 0
    read_bytes: int = 0
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

    def query_into(self, write_end: int, statement: Statement, default_format: str) -> Progress:
        """Run a statement with its result written to a pipe.

        The engine itself formats the whole result, as a server does, and waits where nobody reads: memory
        stays flat however large the result is.
        """
        # The outer format is not "Null": SHOW is rewritten inside, to a query that would then write nothing.
        return self.query(statement.into_file(f"/dev/fd/{write_end}", default_format))[1]

    def create_temporary(self, name: str, structure: str) -> None:
        """Make a temporary table, which lives as long as the connection."""
        columns = structure.encode("utf-8", "surrogateescape")
        self.query(b"CREATE TEMPORARY TABLE " + identifier(name) + b" (" + columns + b")")

    def insert(self, text: bytes, format_name: str) -> Insert:
        """Begin a streamed insert; `text` has neither FORMAT nor data."""
        started = time.perf_counter_ns()
        try:
            return Insert(self._raw.send_insert(text, format_name), started)
        except Exception as error:
            raise QueryError.from_engine(error) from error


class Insert:
    """An insert whose data is being pushed in; blocks for as long as the engine needs to take it."""

    def __init__(self, raw: Any, started: int) -> None:
        self._raw = raw
        self._started = started

    def append(self, data: bytes) -> None:
        try:
            self._raw.append(data)
        except Exception as error:
            raise QueryError.from_engine(error) from error

    def finish(self) -> Progress:
        """Commit; when this returns the rows are on disk."""
        try:
            result = self._raw.finish()
        except Exception as error:
            raise QueryError.from_engine(error) from error
        rows, size = int(result.rows_written), int(result.bytes_written)
        return Progress(rows, size, rows, size, elapsed_ns=time.perf_counter_ns() - self._started)

    def cancel(self) -> None:
        """Drop what is not yet written; no error when the insert has ended already."""
        try:
            self._raw.cancel()
        except Exception as error:
            raise QueryError.from_engine(error) from error


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
    """

    def __init__(self, settings: Settings) -> None:
        # The engine takes its time zone from the environment and nowhere else.
        os.environ["TZ"] = self.timezone = "UTC"
        time.tzset()
        config = settings.home_path / "warehouse.xml"
        config.write_text(
            _CONFIG.format(
                memory=settings.warehouse_max_memory_bytes, cache=settings.warehouse_max_memory_bytes // 8
            )
        )
        for path in (settings.warehouse_dir, config):
            if set(str(path)) & set("?&%#+;"):
                raise ValueError(f"the warehouse can't live in {str(path)!r}: choose a folder without ?&%#+;")
        # Signals belong to the server around the engine, and that must be said before the first connection.
        native: Any = import_module("chdb._chdb")
        native.set_signal_handlers_enabled(0)
        library: Any = import_module("chdb")
        self._open = library.connect
        options = "&".join(f"{name}={value}" for name, value in _CONNECTION_SETTINGS.items())
        self._url = f"{settings.warehouse_dir}?config-file={config}&{options}"
        # The engine lives as long as its last connection; this one keeps it alive.
        self._anchor = self.connect()
        self.version = self._anchor.query(b"SELECT version()")[0].decode().strip()
        self.host = socket.gethostname()

    def connect(self) -> Connection:
        """A new connection with nothing set but the defaults."""
        try:
            return Connection(self._open(self._url))
        except Exception as error:
            raise QueryError.from_engine(error) from error

    def kill(self, query_ids: Iterable[str]) -> None:
        """Ask the engine to cancel running queries, by the ids their clients know."""
        names = b", ".join(string_literal(name) for name in query_ids)
        connection = self.connect()
        try:
            connection.query(
                b"KILL QUERY WHERE Settings['%s'] IN (%s) ASYNC" % (QUERY_ID_SETTING.encode(), names)
            )
        finally:
            connection.close()

    def close(self) -> None:
        """Close the engine. Every other connection must be closed before."""
        self._anchor.close()


def open_pipe() -> tuple[int, int]:
    """Read and write end of a pipe as large as the system lets it be, up to 1 MiB."""
    read_end, write_end = os.pipe()
    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize is not None:
        # Refused above the user's share; the default of 64 KiB only costs speed.
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_end, resize, 1 << 20)
    return read_end, write_end
