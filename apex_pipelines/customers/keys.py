"""API keys: issuing, revoking, rotating.

Belongs here: rows of `api_keys`. A key's plaintext exists only in what `issue_key` returns; the table holds
its SHA-256 and the first 12 characters that people recognise it by.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from apex_pipelines.customers.models import ApiKey, Customer, KeyScope
from apex_pipelines.customers.store import CustomerNotFound

KEY_PREFIX = "apx_live_"
_SHOWN_CHARACTERS = 12
_ROWS_PER_STATEMENT = 1_000


class ApiKeyError(ValueError):
    """A key can't be issued or changed; the message says what was given and what to do."""


class KeyNotFound(ApiKeyError):
    """No key has this id or prefix."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key; `plaintext` can't be read again after this."""

    id: str
    customer_id: str | None
    plaintext: str
    scopes: tuple[KeyScope, ...]

    def __repr__(self) -> str:
        return f"IssuedKey(id={self.id!r}, customer_id={self.customer_id!r}, plaintext='***')"


def hash_key(plaintext: str) -> bytes:
    """SHA-256 of the whole key, as `api_keys.key_hash` holds it.

    A plain hash is enough: a key is 256 random bits, which nobody can guess from it.
    """
    return hashlib.sha256(plaintext.encode()).digest()


def issue_key(
    connection: sa.Connection,
    customer_id: str,
    now: datetime,
    *,
    label: str = "default",
    scopes: Sequence[KeyScope] = (KeyScope.INGEST,),
    expires_at: datetime | None = None,
) -> IssuedKey:
    """Issue a key to a customer; the only time its plaintext is known.

    Raises
    ------
    CustomerNotFound
        If there is no such customer.
    ApiKeyError
        If there is no scope, or the key would be expired already.
    """
    if not connection.scalar(sa.select(sa.exists().where(Customer.id == customer_id))):
        raise CustomerNotFound(f"there is no customer {customer_id!r}; `apex customer list` shows the ids")
    if KeyScope.OPERATOR in scopes:
        raise ApiKeyError("a key of the operator belongs to no customer; `issue_operator_key` makes one")
    return issue_keys(connection, [customer_id], now, label=label, scopes=scopes, expires_at=expires_at)[0]


def issue_operator_key(
    connection: sa.Connection,
    now: datetime,
    *,
    label: str = "operator",
    historical: bool = False,
    expires_at: datetime | None = None,
) -> IssuedKey:
    """Issue a key that reports life events of any customer; the only time its plaintext is known.

    Parameters
    ----------
    historical : bool
        Also accept events older than 35 days.

    Raises
    ------
    ApiKeyError
        If the key would be expired already.
    """
    scopes = (KeyScope.OPERATOR, *((KeyScope.HISTORICAL,) if historical else ()))
    return issue_keys(connection, [None], now, label=label, scopes=scopes, expires_at=expires_at)[0]


def issue_keys(
    connection: sa.Connection,
    customer_ids: Iterable[str | None],
    now: datetime,
    *,
    label: str,
    scopes: Sequence[KeyScope] = (KeyScope.INGEST,),
    expires_at: datetime | None = None,
) -> list[IssuedKey]:
    """Issue one key to each of many existing customers, in the order given.

    Raises
    ------
    ApiKeyError
        If there is no scope, or the keys would be expired already.
    sqlalchemy.exc.IntegrityError
        If one of the customers doesn't exist.
    """
    if not scopes:
        raise ApiKeyError(f"a key needs at least one scope of {', '.join(KeyScope)}")
    if expires_at is not None and expires_at <= now:
        raise ApiKeyError(f"expires_at {expires_at.isoformat()} is not after now, {now.isoformat()}")
    issued = [
        IssuedKey(
            id=f"key_{uuid.uuid4().hex}",
            customer_id=customer_id,
            plaintext=KEY_PREFIX + secrets.token_urlsafe(32),
            scopes=tuple(scopes),
        )
        for customer_id in customer_ids
    ]
    rows = [
        {
            "id": key.id,
            "customer_id": key.customer_id,
            "label": label,
            "prefix": key.plaintext[:_SHOWN_CHARACTERS],
            "key_hash": hash_key(key.plaintext),
            "scopes": [str(scope) for scope in scopes],
            "created_at": now,
            "expires_at": expires_at,
        }
        for key in issued
    ]
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        connection.execute(sa.insert(ApiKey), rows[start : start + _ROWS_PER_STATEMENT])
    return issued


def revoke_key(connection: sa.Connection, key_id: str, now: datetime) -> None:
    """Make a key useless from `now` on; a revoked key stays as it is.

    The API forgets a key within `api_key_cache_seconds`.

    Raises
    ------
    KeyNotFound
        If there is no such key.
    """
    known = connection.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=sa.func.coalesce(ApiKey.revoked_at, now))
        .returning(ApiKey.id)
    ).one_or_none()
    if known is None:
        raise KeyNotFound(f"there is no key {key_id!r}; `apex keys list` shows the ids")


def revoke_keys_labelled(connection: sa.Connection, label: str, now: datetime) -> int:
    """Revoke every open key with this label, such as those of one import; how many there were."""
    return connection.execute(
        sa.update(ApiKey).where(ApiKey.label == label, ApiKey.revoked_at.is_(None)).values(revoked_at=now)
    ).rowcount


def rotate_key(
    connection: sa.Connection, key_id: str, now: datetime, *, overlap: timedelta = timedelta(0)
) -> IssuedKey:
    """Issue a twin of a key (same customer, label, scopes) and end the old one.

    Parameters
    ----------
    overlap : timedelta
        How long the old key still works, so that apps in the field can be moved over.

    Raises
    ------
    KeyNotFound
        If there is no such key.
    ApiKeyError
        If the key is revoked or expired already: a new one must be issued on purpose.
    """
    old = connection.execute(
        sa.select(ApiKey.customer_id, ApiKey.label, ApiKey.scopes, ApiKey.expires_at, ApiKey.revoked_at)
        .where(ApiKey.id == key_id)
        .with_for_update()
    ).one_or_none()
    if old is None:
        raise KeyNotFound(f"there is no key {key_id!r}; `apex keys list` shows the ids")
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise ApiKeyError(
            f"key {key_id!r} no longer works; issue a new one with `apex keys issue "
            f"{old.customer_id or '--operator'}`"
        )
    (new,) = issue_keys(
        connection,
        [old.customer_id],
        now,
        label=old.label,
        scopes=tuple(KeyScope(scope) for scope in old.scopes),
        expires_at=old.expires_at,
    )
    if overlap:
        ends = now + overlap if old.expires_at is None else min(old.expires_at, now + overlap)
        connection.execute(sa.update(ApiKey).where(ApiKey.id == key_id).values(expires_at=ends))
    else:
        revoke_key(connection, key_id, now)
    return new


def list_keys(connection: sa.Connection, customer_id: str | None = None) -> Sequence[sa.RowMapping]:
    """Keys without their hashes, newest first: all, or one customer's."""
    query = sa.select(
        ApiKey.id, ApiKey.customer_id, ApiKey.label, ApiKey.prefix, ApiKey.scopes,
        ApiKey.created_at, ApiKey.expires_at, ApiKey.revoked_at,
    ).order_by(ApiKey.created_at.desc(), ApiKey.id)  # fmt: skip
    if customer_id is not None:
        query = query.where(ApiKey.customer_id == customer_id)
    return connection.execute(query).mappings().all()
