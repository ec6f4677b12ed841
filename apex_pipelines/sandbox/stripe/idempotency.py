"""Requests that are made again.

Belongs here: remembering answers under idempotency keys. Does not belong here: the requests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import Refusal

KEPT_SECONDS = 24 * 3_600
_LONGEST = 255


@dataclass(frozen=True)
class Answer:
    """What was answered the first time."""

    status: int
    body: bytes


def fingerprint(method: str, path: str, body: bytes) -> str:
    """Tells requests apart; two with the same key must have the same."""
    return hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).hexdigest()


def recall(account: Account, key: str, request: str) -> Answer | None:
    """The answer that this key has had within 24 h of the account's time; None for a new one.

    Raises
    ------
    Refusal
        If the key came with another request, or is too long.
    """
    if len(key) > _LONGEST:
        raise Refusal(
            400, "invalid_request_error", f"Idempotency-Key must be at most {_LONGEST} characters long."
        )
    row = account.store.connection.execute(
        "select request, status, body from idempotency where key = ? and created > ?",
        (key, account.account_time() - KEPT_SECONDS),
    ).fetchone()
    if row is None:
        return None
    if row["request"] != request:
        raise Refusal(
            400,
            "idempotency_error",
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            f"with. Try using a key other than '{key}' if you meant to execute a different request.",
        )
    return Answer(row["status"], row["body"])


def remember(account: Account, key: str, request: str, answer: Answer) -> None:
    """Keep an answer, in the transaction of what it tells of."""
    account.store.connection.execute(
        "insert or replace into idempotency values (?, ?, ?, ?, ?)",
        (key, request, answer.status, answer.body, account.account_time()),
    )
