"""Looking API keys up in PostgreSQL, by their SHA-256.

Belongs here: the one query. Does not belong here: remembering answers (`keys`), the connection (`database`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ingest_api.database import Database, DatabaseAway

_QUERY = """
select key_hash, customer_id, scopes, expires_at, revoked_at
from api_keys
where key_hash = any(%s)
"""


class KeysUnavailable(Exception):
    """PostgreSQL can't be asked right now."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as PostgreSQL has it; `digest` is its SHA-256, instants are aware.

    A key of the operator has no customer.
    """

    digest: bytes
    customer_id: str | None
    scopes: frozenset[str]
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyLookup:
    """The look-up; used by one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, digests: Sequence[bytes]) -> dict[bytes, KeyRecord]:
        """Records by SHA-256 digest; digests that no key has are absent.

        Raises
        ------
        KeysUnavailable
            If PostgreSQL does not answer.
        """
        try:
            rows = self._database.run(
                lambda connection: connection.execute(_QUERY, (list(digests),)).fetchall()
            )
        except DatabaseAway as error:
            raise KeysUnavailable(str(error)) from error
        return {
            bytes(digest): KeyRecord(bytes(digest), customer_id, frozenset(scopes), expires_at, revoked_at)
            for digest, customer_id, scopes, expires_at, revoked_at in rows
        }

    def close(self) -> None:
        self._database.close()
