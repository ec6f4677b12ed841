"""Looking API keys up in PostgreSQL, by their SHA-256.

Belongs here: the one query and its connection. Does not belong here: remembering answers (`keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

_Row = tuple[bytes, str, list[str], datetime | None, datetime | None]

_QUERY = """
select key_hash, customer_id, scopes, expires_at, revoked_at
from api_keys
where key_hash = any(%s)
"""
# A dead network must not hold requests: milliseconds until the socket, or the query, is given up.
_OPTIONS = "-c timezone=UTC -c statement_timeout=2000 -c default_transaction_read_only=on"


class KeysUnavailable(Exception):
    """PostgreSQL can't be asked right now."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as PostgreSQL has it; instants are aware."""

    customer_id: str
    scopes: frozenset[str]
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyLookup:
    """One connection, made when needed and again after it was lost; used by one thread at a time.

    Parameters
    ----------
    database_url : callable
        Tells the libpq URL at the moment of connecting: an embedded server may move when it restarts.
    """

    def __init__(self, database_url: Callable[[], str]) -> None:
        self._database_url = database_url
        self._connection: psycopg.Connection[_Row] | None = None

    def find(self, digests: Sequence[bytes]) -> dict[bytes, KeyRecord]:
        """Records by SHA-256 digest; digests that no key has are absent.

        Raises
        ------
        KeysUnavailable
            If PostgreSQL does not answer.
        """
        try:
            try:
                rows = self._rows(digests)
            except psycopg.OperationalError:
                # The server may have been restarted since the last query: once more on a new connection.
                self.close()
                rows = self._rows(digests)
        except (psycopg.Error, RuntimeError, OSError) as error:
            self.close()
            raise KeysUnavailable(str(error)) from error
        return {
            bytes(digest): KeyRecord(customer_id, frozenset(scopes), expires_at, revoked_at)
            for digest, customer_id, scopes, expires_at, revoked_at in rows
        }

    def _rows(self, digests: Sequence[bytes]) -> list[_Row]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._database_url(),
                autocommit=True,
                connect_timeout=2,
                options=_OPTIONS,
                tcp_user_timeout=2000,
                application_name="ingest_api",
            )
        return self._connection.execute(_QUERY, (list(digests),)).fetchall()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
