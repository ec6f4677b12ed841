"""PostgreSQL as the API's workers use it: one connection, made when needed, that holds no request for long.

Belongs here: connecting, giving up, trying once more. Does not belong here: SQL (the look-ups and the inbox).

Plain psycopg, because SQLAlchemy would double a worker's time to start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

# A dead network must not hold requests: milliseconds until the socket, or the query, is given up.
_OPTIONS = "-c timezone=UTC -c statement_timeout=2000"
_READ_ONLY = " -c default_transaction_read_only=on"
_WAIT_SECONDS = 3.0  # how long a request waits for an answer


class DatabaseAway(Exception):
    """PostgreSQL can't be asked right now."""


class Database:
    """One connection, made again after it was lost; used by one thread at a time.

    Parameters
    ----------
    url : callable
        Tells the libpq URL at the moment of connecting: an embedded server may move when it restarts.
    """

    def __init__(self, url: Callable[[], str], *, read_only: bool = False) -> None:
        self._url = url
        self._options = _OPTIONS + (_READ_ONLY if read_only else "")
        self._connection: Connection | None = None

    def run(self, operation: Callable[[Connection], T]) -> T:
        """Call `operation` with the connection, twice if it was lost meanwhile: it must bear that.

        Raises
        ------
        DatabaseAway
            If PostgreSQL does not answer, or refuses.
        """
        try:
            try:
                return operation(self._connected())
            except psycopg.OperationalError:
                # The server may have been restarted since the last time: once more on a new connection.
                self.close()
                return operation(self._connected())
        except (psycopg.Error, RuntimeError, OSError) as error:
            self.close()
            raise DatabaseAway(str(error)) from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url(),
                autocommit=True,
                connect_timeout=2,
                options=self._options,
                tcp_user_timeout=2000,
                # That counts only while something of ours is not received. A host that died after it received
                # a question would be waited for two hours.
                keepalives_idle=2,
                keepalives_interval=1,
                keepalives_count=3,
                application_name="ingest_api",
            )
        return self._connection


class DatabaseThread:
    """A database whose operations run in a thread of their own, so that the event loop never waits."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, operation: Callable[[Connection], T]) -> T:
        """The result of `operation`. After a timeout it may still take effect.

        Raises
        ------
        DatabaseAway
            If PostgreSQL does not answer in time, or refuses.
        """
        try:
            asked = self._loop.run_in_executor(self._thread, self._database.run, operation)
            # A timeout takes what has not begun off the thread's queue, so the queue stays short.
            return await asyncio.wait_for(asked, _WAIT_SECONDS)
        except TimeoutError as error:
            raise DatabaseAway(f"no answer within {_WAIT_SECONDS:.0f} s") from error

    def close(self) -> None:
        """Let what runs finish, then disconnect."""
        self._thread.submit(self._database.close)
        self._thread.shutdown()
