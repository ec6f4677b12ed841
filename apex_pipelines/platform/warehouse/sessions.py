"""HTTP sessions: connections that a client keeps by name, with their settings and temporary tables.

Belongs here: naming, locking and expiring them. Does not belong here: what runs in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from apex_pipelines.platform.warehouse.engine import Connection
from apex_pipelines.platform.warehouse.errors import QueryError

DEFAULT_TIMEOUT_SECONDS = 60
MAX_TIMEOUT_SECONDS = 3600


@dataclass(slots=True)
class Session:
    """One session. `connection` is opened by the first statement that runs in it."""

    name: str
    connection: Connection | None = None
    busy: bool = False
    database: str | None = None
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)


class SessionStore:
    """All sessions of the process. Belongs to the event loop's thread.

    Parameters
    ----------
    on_expire : callable
        Called with a session that timed out, to close its connection.
    """

    def __init__(self, on_expire: Callable[[Session], None]) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._on_expire = on_expire

    def acquire(self, user: str, name: str, *, must_exist: bool) -> Session:
        """The session `name` of `user`, made when absent, reserved for one statement.

        Raises
        ------
        QueryError
            SESSION_IS_LOCKED when a statement is running in it; SESSION_NOT_FOUND when it must exist.
        """
        session = self._sessions.get((user, name))
        if session is None:
            if must_exist:
                raise QueryError("SESSION_NOT_FOUND", f"Session {name} not found")
            session = self._sessions[user, name] = Session(name)
        if session.busy:
            raise QueryError("SESSION_IS_LOCKED", f"Session {name} is locked by a concurrent client")
        session.busy = True
        if session.expiry is not None:
            session.expiry.cancel()
        return session

    def release(self, user: str, session: Session, timeout_seconds: int, *, close: bool = False) -> None:
        """Give a session back; it ends when nobody asks for it within `timeout_seconds`, or at once."""
        session.busy = False
        if close:
            self._expire(user, session)
        else:
            loop = asyncio.get_running_loop()
            session.expiry = loop.call_later(timeout_seconds, self._expire, user, session)

    def _expire(self, user: str, session: Session) -> None:
        if not session.busy and self._sessions.get((user, session.name)) is session:
            del self._sessions[user, session.name]
            self._on_expire(session)

    def drain(self) -> list[Session]:
        """Forget all sessions and return them, for the end of the process."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            if session.expiry is not None:
                session.expiry.cancel()
        return sessions


def timeout_seconds(text: str | None) -> int:
    """The `session_timeout` parameter, checked.

    Raises
    ------
    QueryError
        INVALID_SESSION_TIMEOUT when it is no whole number of seconds up to an hour.
    """
    if text is None:
        return DEFAULT_TIMEOUT_SECONDS
    if not text.isdecimal():
        raise QueryError("INVALID_SESSION_TIMEOUT", f"Invalid session timeout: '{text}'")
    if int(text) > MAX_TIMEOUT_SECONDS:
        raise QueryError(
            "INVALID_SESSION_TIMEOUT",
            f"Session timeout '{text}' is larger than max_session_timeout: {MAX_TIMEOUT_SECONDS}",
        )
    return int(text)
