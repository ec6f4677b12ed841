"""Tokens: whom they let in, and everything they keep out, each with its own code."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.customers.tokens import (
    AUDIENCE,
    ISSUER,
    MAX_TOKEN_CHARACTERS,
    BadTokenSecret,
    TokenProblem,
    TokenRefused,
    customer_of_token,
    issue_token,
    token_secret,
)
from apex_pipelines.settings import Settings, child_environment
from tests.ingest.conftest import Account, Api

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SECRET = "s" * 32
HOUR = timedelta(hours=1)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token, with changes; a change to None leaves the claim out."""
    base = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "cus_a",
        "iat": NOW.timestamp(),
        "exp": (NOW + HOUR).timestamp(),
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def signed(algorithm: str = "HS256", secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm=algorithm)


def unsigned(header: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims())]
    return b".".join([*parts, b""]).decode()


def seconds(count: float) -> float:
    return NOW.timestamp() + count


def test_a_token_names_its_customer_until_it_expires() -> None:
    token = issue_token(SECRET, "cus_a", NOW, HOUR)
    assert customer_of_token(SECRET, token, NOW) == "cus_a"
    assert customer_of_token(SECRET, token, NOW + HOUR + timedelta(seconds=29)) == "cus_a"
    with pytest.raises(TokenRefused, match="expired_token"):
        customer_of_token(SECRET, token, NOW + HOUR + timedelta(seconds=30))
    assert customer_of_token(SECRET, token, NOW - timedelta(seconds=30)) == "cus_a"
    with pytest.raises(TokenRefused, match="token_not_yet_valid"):
        customer_of_token(SECRET, token, NOW - timedelta(seconds=31))


REFUSED: list[tuple[str | None, TokenProblem]] = [
    (None, TokenProblem.MISSING),
    ("", TokenProblem.MISSING),
    ("x" * (MAX_TOKEN_CHARACTERS + 1), TokenProblem.TOO_LARGE),
    (signed(padding="x" * MAX_TOKEN_CHARACTERS), TokenProblem.TOO_LARGE),
    ("no token", TokenProblem.MALFORMED),
    ("a.b.c", TokenProblem.MALFORMED),
    ("é.é.é", TokenProblem.MALFORMED),
    (unsigned({"alg": "none", "typ": "JWT"}), TokenProblem.WRONG_ALGORITHM),
    (unsigned({"alg": "None"}), TokenProblem.WRONG_ALGORITHM),
    (unsigned({"alg": "RS256"}), TokenProblem.WRONG_ALGORITHM),
    (unsigned({"alg": "HS256"}), TokenProblem.BAD_SIGNATURE),
    (unsigned({"alg": ["HS256"]}), TokenProblem.WRONG_ALGORITHM),
    (unsigned({}), TokenProblem.WRONG_ALGORITHM),
    (signed("HS512", SECRET * 2), TokenProblem.WRONG_ALGORITHM),
    (signed(secret="t" * 32), TokenProblem.BAD_SIGNATURE),
    (signed()[:-2] + "AA", TokenProblem.BAD_SIGNATURE),
    (signed(aud="another"), TokenProblem.WRONG_AUDIENCE),
    (signed(aud=[]), TokenProblem.CLAIM_MISSING),
    (signed(iss="another"), TokenProblem.WRONG_ISSUER),
    *((signed(**{name: None}), TokenProblem.CLAIM_MISSING) for name in ("aud", "exp", "iat", "iss", "sub")),
    (signed(exp=seconds(-30)), TokenProblem.EXPIRED),
    (signed(iat=seconds(31)), TokenProblem.NOT_YET_VALID),
    (signed(nbf=seconds(31)), TokenProblem.NOT_YET_VALID),
    (signed(exp="tomorrow"), TokenProblem.MALFORMED),
    (signed(exp=True), TokenProblem.MALFORMED),
    (signed(exp=float("nan")), TokenProblem.MALFORMED),
    (signed(exp=float("inf")), TokenProblem.MALFORMED),
    (signed(exp=10**400), TokenProblem.MALFORMED),
    (signed(nbf=[]), TokenProblem.MALFORMED),
    (signed(sub=""), TokenProblem.MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(("token", "problem"), REFUSED)
def test_any_other_token_is_refused_with_its_reason(token: str | None, problem: TokenProblem) -> None:
    with pytest.raises(TokenRefused) as refused:
        customer_of_token(SECRET, token, NOW)
    assert refused.value.problem is problem


@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "typ", "crit", "b64", "kid", "jwk", "zip"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(["HS256", "none", "b64"]),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("a"), inner),
            max_leaves=3,
        ),
    )
)
def test_no_header_opens_the_door_or_breaks_it(header: dict[str, Any]) -> None:
    with pytest.raises(TokenRefused):
        customer_of_token(SECRET, unsigned(header), NOW)


def test_a_secret_is_made_once_and_a_short_one_is_refused(tmp_path: Path) -> None:
    made = token_secret(Settings(home=tmp_path))
    assert len(made) == 64
    assert token_secret(Settings(home=tmp_path)) == made
    assert (tmp_path / "jwt.secret").stat().st_mode & 0o077 == 0
    assert token_secret(Settings(home=tmp_path, jwt_secret=SECRET)) == SECRET
    with pytest.raises(BadTokenSecret, match="31 bytes"):
        token_secret(Settings(home=tmp_path, jwt_secret="s" * 31))


def test_the_api_does_not_start_with_a_short_secret(settings: Settings) -> None:
    command = [sys.executable, "-m", "ingest_api"]
    env = child_environment(settings, APEX_JWT_SECRET="short")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "APEX_JWT_SECRET has 5 bytes" in done.stderr


def test_a_host_beside_others_is_warned_of_a_secret_of_its_own(
    new_api: Callable[..., Api], tmp_path: Path
) -> None:
    for environment, warned in (({}, True), ({"APEX_JWT_SECRET": SECRET}, False)):
        api = new_api(**environment, log=tmp_path / f"{warned}.log")
        assert ("APEX_JWT_SECRET is not set" in api.log.read_text()) == warned
        api.stop()


def test_the_api_says_why_a_token_is_refused_and_counts_nothing_for_it(
    new_api: Callable[..., Api], account: Account
) -> None:
    api = new_api(APEX_JWT_SECRET=SECRET)

    def ask(token: str | None) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.get(f"{api.url}/api/v1/usage/current", headers=headers)

    for token, problem in REFUSED:
        if token is None or (token and token.isascii()):
            answer = ask(token)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == problem
            assert answer.headers["www-authenticate"].startswith('Bearer realm="apex"')
            assert "ratelimit-limit" not in answer.headers
    stranger = ask(signed(sub="cus_nobody"))
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "unknown_customer")
    # The key that sends events does not read figures.
    assert ask(account.key).json()["error"]["code"] == "malformed_token"
    basic = httpx.get(f"{api.url}/api/usage/current", headers={"authorization": f"Basic {signed()}"})
    assert basic.json()["error"]["code"] == "missing_token"


def test_the_operator_prints_a_token_that_the_api_takes(
    settings: Settings,
    engine: sa.Engine,
    account: Account,
    process_environment: Callable[..., dict[str, str]],
) -> None:
    def apex(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("apex"), *arguments]
        return subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=60)

    done = apex("customer", "token", account.customer_id, "--minutes", "5")
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    assert customer_of_token(token_secret(settings), token, NOW + timedelta(minutes=5)) == account.customer_id
    with pytest.raises(TokenRefused, match="expired"):
        customer_of_token(token_secret(settings), token, NOW + timedelta(minutes=6))
    unknown = apex("customer", "token", "cus_nobody")
    assert unknown.returncode == 1
    assert "there is no customer 'cus_nobody'" in unknown.stderr
