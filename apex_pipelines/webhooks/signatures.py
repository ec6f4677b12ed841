"""Whether a webhook comes from whom it says: HMAC-SHA256 over its time and its bytes.

Belongs here: the two schemes of signing. Does not belong here: HTTP, and what an event means.

Written out instead of taken from the providers' packages: it is thirty lines of the standard library, and the
`stripe` package would double the memory and the start-up time of each API worker.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta

TOLERANCE = timedelta(minutes=5)  # either way; both providers' own packages use it
_MAX_SIGNATURES = 16  # a provider sends one for each secret while secrets are rolled
_MAX_HEADER_CHARACTERS = 4_096
SVIX_SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix only


class BadSignature(ValueError):
    """The webhook is not signed by the holder of the secret, or not lately; the message says which."""


class BadSecret(ValueError):
    """The secret itself can't be one."""


def verify_stripe(payload: bytes, header: str | None, secret: str, now: datetime) -> None:
    """Check ``Stripe-Signature: t=<seconds>,v1=<hex>[,v1=<hex>]``, over ``<t>.<payload>``.

    Raises
    ------
    BadSignature
        If it is missing, malformed, of another secret or payload, or further than `TOLERANCE` from `now`.

    Notes
    -----
    https://docs.stripe.com/webhooks#verify-manually
    """
    items = [item.partition("=") for item in _bounded(header, "Stripe-Signature").split(",")]
    times = [value for name, _, value in items if name.strip() == "t"]
    if len(times) != 1:
        raise BadSignature("Stripe-Signature has no single t=")
    _check_time(times[0], now)
    expected = hmac.new(secret.encode(), f"{times[0]}.".encode() + payload, hashlib.sha256).hexdigest()
    _check_any([value for name, _, value in items if name.strip() == "v1"], expected)


def verify_svix(payload: bytes, headers: Mapping[str, str | None], secret: str, now: datetime) -> str:
    """Check `svix-signature` (``v1,<base64>``, several apart by blanks) over ``<id>.<timestamp>.<payload>``.

    Parameters
    ----------
    headers : mapping
        `svix-id`, `svix-timestamp`, `svix-signature`.
    secret : str
        ``whsec_`` and base64.

    Returns
    -------
    str
        The message id, which stays the same when the message is sent again.

    Raises
    ------
    BadSignature
        As `verify_stripe`.

    Notes
    -----
    https://docs.svix.com/receiving/verifying-payloads/how-manual
    """
    message_id = _bounded(headers.get("svix-id"), "svix-id")
    timestamp = _bounded(headers.get("svix-timestamp"), "svix-timestamp")
    signatures = _bounded(headers.get("svix-signature"), "svix-signature").split(" ")
    _check_time(timestamp, now)
    signed = f"{message_id}.{timestamp}.".encode() + payload
    digest = hmac.new(svix_key(secret), signed, hashlib.sha256).digest()
    found = [value for version, _, value in (item.partition(",") for item in signatures) if version == "v1"]
    _check_any(found, base64.b64encode(digest).decode())
    return message_id


def svix_key(secret: str) -> bytes:
    """The key that a ``whsec_...`` secret stands for.

    Raises
    ------
    BadSecret
        If it is no base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SVIX_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSecret("the secret is not `whsec_` and base64") from error
    if not key:
        raise BadSecret("the secret is empty")
    return key


def _bounded(header: str | None, name: str) -> str:
    if not header:
        raise BadSignature(f"the header {name} is missing")
    if len(header) > _MAX_HEADER_CHARACTERS or not header.isascii():
        raise BadSignature(f"the header {name} is malformed")
    return header


def _check_time(seconds: str, now: datetime) -> None:
    # Twelve digits reach beyond the year 30000; more would only cost time to parse.
    if not (seconds.isdecimal() and len(seconds) <= 12):
        raise BadSignature("the signature's time is no whole number of seconds")
    distance = now.timestamp() - int(seconds)
    if abs(distance) > TOLERANCE.total_seconds():
        where = "before" if distance > 0 else "after"
        raise BadSignature(f"it was signed {abs(distance):.0f} s {where} now, at most {TOLERANCE.seconds}")


def _check_any(signatures: list[str], expected: str) -> None:
    if not any(
        hmac.compare_digest(signature.encode(), expected.encode())
        for signature in signatures[:_MAX_SIGNATURES]
    ):
        raise BadSignature("no signature fits the payload and our secret")
