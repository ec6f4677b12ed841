"""HTTP sessions: connections that a client keeps by name, with their settings and temporary tables.

Belongs here: naming, locking and expiring them. Does not belong here: what runs in them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from apex_pipelines.platform.warehouse.engine import Connection
from apex_pipelines.platform.warehouse.errors import QueryError

DEFAULT_TIMEOUT_SECONDS = 60
MAX_TIMEOUT_SECONDS = 3600


@dataclass(slots=True)
class Session:
    """One session.

    Attributes
    ----------
    connection : Connection or None
        Opened by the first statement that runs in it.
    parameters : set of str
        Query parameters that requests brought; the engine keeps them, and each is its request's alone.
    """

    connection: Connection | None = None
    parameters: set[str] = field(default_factory=set)
    busy: bool = False
    expires_at: float = 0.0

    def close(self) -> None:
        """Close its connection; the next statement would begin it anew."""
        self.parameters.clear()
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class SessionStore:
    """All sessions of the process. Safe for many threads.

    Parameters
    ----------
    clock : callable
        Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._lock = threading.Lock()
        self._clock = clock

    @contextmanager
    def reserved(
        self, user: str, name: str, timeout_seconds: int, *, must_exist: bool, close: bool
    ) -> Iterator[Session]:
        """The session `name` of `user`, made when absent, for one statement.

        Afterwards it ends when nobody asks for it within `timeout_seconds`, or at once with `close`.

        Raises
        ------
        QueryError
            SESSION_IS_LOCKED when a statement is running in it; SESSION_NOT_FOUND when it must exist.
        """
        self.sweep()
        with self._lock:
            session = self._sessions.get((user, name))
            if session is None:
                if must_exist:
                    raise QueryError("SESSION_NOT_FOUND", f"Session {name} not found")
                session = self._sessions[user, name] = Session()
            if session.busy:
                raise QueryError("SESSION_IS_LOCKED", f"Session {name} is locked by a concurrent client")
            session.busy = True
        try:
            yield session
        finally:
            with self._lock:
                session.busy = False
                session.expires_at = self._clock() + timeout_seconds
                if close:
                    del self._sessions[user, name]
            if close:
                session.close()

    def sweep(self) -> None:
        """Close what has expired."""
        now = self._clock()
        with self._lock:
            expired = [
                key
                for key, session in self._sessions.items()
                if not session.busy and session.expires_at <= now
            ]
            ended = [self._sessions.pop(key) for key in expired]
        for session in ended:
            session.close()

    def close(self) -> None:
        """Close all, for the end of the process, when nothing runs any more."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()


def timeout_seconds(text: str | None) -> int:
    """The `session_timeout` parameter, checked.

    Raises
    ------
    QueryError
        INVALID_SESSION_TIMEOUT when it is no whole number of seconds up to an hour.
    """
    if text is None:
        return DEFAULT_TIMEOUT_SECONDS
    if not text.isdecimal() or len(text) > 9:
        raise QueryError("INVALID_SESSION_TIMEOUT", f"Invalid session timeout: '{text}'")
    if int(text) > MAX_TIMEOUT_SECONDS:
        raise QueryError(
            "INVALID_SESSION_TIMEOUT",
            f"Session timeout '{text}' is larger than max_session_timeout: {MAX_TIMEOUT_SECONDS}",
        )
    return int(text)
