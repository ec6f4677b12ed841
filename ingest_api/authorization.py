"""Who may do what: from a request's API key to the record that a route works with.

Belongs here: the answers 401 and 403. Does not belong here: how keys are remembered (`keys`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from ingest_api.key_lookup import KeyRecord, KeysUnavailable
from ingest_api.keys import KeyProblem, KeyRefused, KeyRing
from ingest_api.request_body import RequestHeaders
from ingest_api.responses import HttpError

# RFC 6750 wants a parameter; without one Foundation's HTTP client on Linux ends the app that asked.
CHALLENGE = 'Bearer realm="apex"'

_KEY_MESSAGES = {
    KeyProblem.MISSING: "send the API key as `Authorization: Bearer apx_...` (usage: or api_key in the body)",
    KeyProblem.UNKNOWN: "there is no such API key",
    KeyProblem.REVOKED: "this API key has been revoked",
    KeyProblem.EXPIRED: "this API key has expired",
}


def bearer(headers: RequestHeaders) -> str | None:
    """The key or token in the Authorization header."""
    header = headers.get("authorization")
    if header is None:
        return None
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


async def require_key(
    keys: KeyRing, key: str | None, now: datetime, scopes: Collection[str], to: str
) -> KeyRecord:
    """The record of a valid key that has one of `scopes`; `to` says what it may otherwise not do.

    Raises
    ------
    HttpError
        401 if the key is no good, 403 if it lacks the scope, 503 if that can't be known at the moment.
    """
    try:
        record = await keys.resolve(key, now)
    except KeyRefused as error:
        headers = [("www-authenticate", CHALLENGE)]
        raise HttpError(401, error.problem, _KEY_MESSAGES[error.problem], headers) from error
    except KeysUnavailable as error:
        message = "API keys can't be checked at the moment; send it again"
        raise HttpError(503, "keys_unavailable", message, [("retry-after", "2")]) from error
    if record.scopes.isdisjoint(scopes):
        raise HttpError(403, "scope_missing", f"this API key may not {to}")
    return record
