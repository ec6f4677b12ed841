"""Tokens by which a person at a customer reads that customer's own figures: JSON Web Tokens, HS256.

Belongs here: the claims, issuing, checking. Does not belong here: HTTP, whether the customer still exists.

One algorithm, one issuer, one audience; time is the caller's clock, so that the library's own checks of time
are switched off and made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

import jwt

from apex_pipelines.platform.kept_secret import kept_secret
from apex_pipelines.settings import Settings

ISSUER = "apexmediation"
AUDIENCE = "apexmediation-usage"
ALGORITHM = "HS256"
LEEWAY = timedelta(seconds=30)
MAX_TOKEN_CHARACTERS = 4_096
_MIN_SECRET_BYTES = 32
_REQUIRED = ["aud", "exp", "iat", "iss", "sub"]


class BadTokenSecret(ValueError):
    """The configured secret can't be used; the message says what to do."""


class TokenProblem(StrEnum):
    """Why a token does not open the door; codes of the API."""

    MISSING = "missing_token"
    TOO_LARGE = "token_too_large"
    MALFORMED = "malformed_token"
    WRONG_ALGORITHM = "wrong_token_algorithm"
    BAD_SIGNATURE = "bad_token_signature"
    WRONG_AUDIENCE = "wrong_token_audience"
    WRONG_ISSUER = "wrong_token_issuer"
    CLAIM_MISSING = "token_claim_missing"
    EXPIRED = "expired_token"
    NOT_YET_VALID = "token_not_yet_valid"


class TokenRefused(Exception):
    """The token is not valid."""

    def __init__(self, problem: TokenProblem) -> None:
        super().__init__(problem.value)
        self.problem = problem


def token_secret(settings: Settings) -> str:
    """The signing secret: `APEX_JWT_SECRET`, else a random one kept in the data folder.

    Raises
    ------
    BadTokenSecret
        If the configured one is shorter than HS256's hash, 32 bytes.
    """
    configured = settings.jwt_secret
    if configured is None:
        return kept_secret(settings.home_path / "jwt.secret")
    if len(configured.encode()) < _MIN_SECRET_BYTES:
        raise BadTokenSecret(
            f"APEX_JWT_SECRET has {len(configured.encode())} bytes, at least {_MIN_SECRET_BYTES} are needed; "
            "make one with `openssl rand -hex 32`, or leave it unset to have one made"
        )
    return configured


def issue_token(secret: str, customer_id: str, now: datetime, lifetime: timedelta) -> str:
    """A token for reading `customer_id`'s figures from `now` until `now + lifetime`."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": customer_id,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def customer_of_token(secret: str, token: str | None, now: datetime) -> str:
    """The customer whom a valid token names.

    Raises
    ------
    TokenRefused
        If it is missing, too large, malformed, not ours, not for this or not valid at `now`.
    """
    if not token:
        raise TokenRefused(TokenProblem.MISSING)
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TokenRefused(TokenProblem.TOO_LARGE)
    claims = _verified_claims(secret, token)
    _check_times(claims, now.timestamp())
    customer_id = claims["sub"]
    if not isinstance(customer_id, str) or not customer_id:
        raise TokenRefused(TokenProblem.MALFORMED)
    return customer_id


def _verified_claims(secret: str, token: str) -> Mapping[str, object]:
    options = {"require": _REQUIRED, "verify_exp": False, "verify_iat": False, "verify_nbf": False}
    try:
        return jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options=options,  # type: ignore[arg-type]  # a TypedDict that nobody can import at run time
        )
    except jwt.InvalidAlgorithmError as error:
        raise TokenRefused(TokenProblem.WRONG_ALGORITHM) from error
    except jwt.InvalidSignatureError as error:
        raise TokenRefused(TokenProblem.BAD_SIGNATURE) from error
    except jwt.MissingRequiredClaimError as error:
        raise TokenRefused(TokenProblem.CLAIM_MISSING) from error
    except jwt.InvalidAudienceError as error:
        raise TokenRefused(TokenProblem.WRONG_AUDIENCE) from error
    except jwt.InvalidIssuerError as error:
        raise TokenRefused(TokenProblem.WRONG_ISSUER) from error
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise TokenRefused(TokenProblem.MALFORMED) from error


def _check_times(claims: Mapping[str, object], now: float) -> None:
    leeway = LEEWAY.total_seconds()
    if _instant(claims["exp"]) + leeway <= now:
        raise TokenRefused(TokenProblem.EXPIRED)
    begins = [claims["iat"], *([claims["nbf"]] if "nbf" in claims else [])]
    if any(_instant(begin) - leeway > now for begin in begins):
        raise TokenRefused(TokenProblem.NOT_YET_VALID)


def _instant(value: object) -> float:
    """A claim of time, in seconds since 1970; JSON's NaN, Infinity and booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRefused(TokenProblem.MALFORMED)
    try:
        seconds = float(value)
    except OverflowError as error:
        raise TokenRefused(TokenProblem.MALFORMED) from error
    if not math.isfinite(seconds):
        raise TokenRefused(TokenProblem.MALFORMED)
    return seconds
