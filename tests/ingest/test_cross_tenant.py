"""No credential but a customer's own reads or moves that customer's data, on any route that there is.

Routes come from the declared endpoints, so a new one is tried with everything as soon as it is listed; its
body is made from its own example. What a customer's own key and token do shows that the test would notice.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.keys import hash_key, issue_key, issue_operator_key, revoke_key
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.customers.tokens import AUDIENCE, ISSUER, issue_token
from ingest_api.endpoints import ENDPOINTS, JSON, BodyForm, Endpoint, Security
from tests.ingest.books import wait_until_landed
from tests.ingest.conftest import CREATED, NOW, Account, Api, LoaderProcess, Reader, event
from tests.ingest.webhook_bodies import SECRETS

SECRET = "s" * 64  # long enough for each algorithm that is tried
# A figure and names that stand nowhere else: whoever sees one of them has seen the victim's data. The metric
# is one that no route's example adds to.
METRIC = "data_transfer"
FIGURE = "918.273"
EVENT_ID = "an-event-of-the-victim"
NAME = "victim"
OWN_KEY, OWN_TOKEN, OPERATOR_KEY = "the customer's own key", "the customer's own token", "the operator's key"


@dataclass(frozen=True)
class Attempt:
    """One cell of the matrix: who tries which route."""

    credential: str
    method: str
    path: str


@dataclass(frozen=True)
class Matrix:
    """All routes with all credentials; requests name the victim wherever somebody can be named."""

    http: httpx.Client
    victim: str

    def try_all(self, credentials: dict[str, str]) -> Iterator[tuple[Attempt, str, httpx.Response]]:
        """Each attempt with the mark that its events carry in their ids, and its answer."""
        for name, credential in credentials.items():
            for endpoint in ENDPOINTS:
                for path in endpoint.paths:
                    for form in endpoint.bodies or (None,):
                        for send in (self._in_header, self._in_body_and_query):
                            mark = f"try-{secrets.token_hex(8)}"
                            answer = send(endpoint, path, form, credential, mark)
                            yield Attempt(name, endpoint.method, path), mark, answer

    def _in_header(
        self, endpoint: Endpoint, path: str, form: BodyForm | None, credential: str, mark: str
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        return self._request(endpoint, path, form, headers, {}, mark)

    def _in_body_and_query(
        self, endpoint: Endpoint, path: str, form: BodyForm | None, credential: str, mark: str
    ) -> httpx.Response:
        headers = {"x-api-key": credential, "cookie": f"token={credential}"} if credential.isascii() else {}
        fields = {"api_key": credential, "token": credential, "access_token": credential}
        return self._request(endpoint, path, form, headers, fields, mark)

    def _request(
        self,
        endpoint: Endpoint,
        path: str,
        form: BodyForm | None,
        headers: dict[str, str],
        fields: dict[str, str],
        mark: str,
    ) -> httpx.Response:
        named = {"customer_id": self.victim, "customer": self.victim, "sub": self.victim}
        content = None
        if form is not None:
            headers = headers | {"content-type": form.content_type}
            content = self._body(form, {**fields, **named}, mark)
        return self.http.request(
            endpoint.method,
            path,
            params={**fields, **named},
            headers=headers | {"x-customer-id": self.victim, "x-forwarded-user": self.victim},
            content=content,
        )

    def _body(self, form: BodyForm, fields: dict[str, str], mark: str) -> bytes:
        """The route's own example, which names the victim at each level and whose events carry `mark`."""
        if form.content_type == JSON:
            return json.dumps(_renamed(form.example, fields, mark)).encode()
        lines = [json.loads(line) for line in form.example.splitlines()]
        return "\n".join(json.dumps(_renamed(line, fields, mark)) for line in lines).encode()


def _renamed(value: Any, fields: dict[str, str], mark: str) -> Any:
    """`value` with `fields` and its own event id in each object, but for metadata."""
    if isinstance(value, list):
        return [_renamed(item, fields, f"{mark}-{index}") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    inner = {
        name: item if name == "metadata" else _renamed(item, fields, mark) for name, item in value.items()
    }
    return inner | fields | {"event_id": mark}


@pytest.fixture
def victim(new_reader: Callable[..., Reader], api: Api) -> Reader:
    """A customer whose figures are known to it alone."""
    made = new_reader(NAME, included_impressions=1_000)
    sent = event(
        metric_type=METRIC, quantity=FIGURE, event_id=EVENT_ID, metadata={"app_id": "app-of-the-victim"}
    )
    assert httpx.post(f"{api.url}/api/usage/track", json=sent, headers=made.account.bearer).status_code == 200
    return made


@pytest.fixture
def api(new_api: Callable[..., Api], new_loader: Callable[..., LoaderProcess], warehouse: Client) -> Api:
    made = new_api(
        APEX_JWT_SECRET=SECRET,
        APEX_API_READS_PER_WINDOW="1000000",
        APEX_API_KEY_EVENTS_PER_SECOND="0",
        **SECRETS,
    )
    new_loader()
    return made


@pytest.fixture
def foreign_credentials(
    victim: Reader, new_account: Callable[..., Account], engine: sa.Engine
) -> dict[str, str]:
    """All that somebody may hold or make up who is not the victim, and what has ceased to be the victim's."""
    scopes = (KeyScope.INGEST, KeyScope.HISTORICAL)
    other = new_account("other", scopes=scopes)
    with engine.begin() as connection:
        revoked = issue_key(connection, victim.customer_id, CREATED)
        revoke_key(connection, revoked.id, NOW)
        expired = issue_key(connection, victim.customer_id, CREATED, expires_at=NOW)
        operator = issue_operator_key(connection, CREATED, historical=True)
    key = victim.account.key
    hour = timedelta(hours=1)

    def token(algorithm: str = "HS256", secret: str = SECRET, **changes: Any) -> str:
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": victim.customer_id,
            "iat": NOW.timestamp(), "exp": (NOW + hour).timestamp(),
        }  # fmt: skip
        return jwt.encode(claims | changes, secret, algorithm=algorithm)

    return {
        "nothing": "",
        "garbage": "garbage",
        "the victim's id": victim.customer_id,
        "another's key": other.key,
        "another's token": issue_token(SECRET, other.customer_id, NOW, hour),
        "another's token that names the victim beside": token(
            sub=other.customer_id, customer_id=victim.customer_id, customer=victim.customer_id
        ),
        OPERATOR_KEY: operator.plaintext,
        "a revoked key": revoked.plaintext,
        "an expired key": expired.plaintext,
        "the id of the key": victim.account.key_id,
        "the shown part of the key": key[:12],
        "the hash of the key": hash_key(key).hex(),
        "the key cut short": key[:-1],
        "the key in capitals": key.upper(),
        "the key with more behind it": f"{key}x",
        "the key with a wildcard": f"{key[:12]}%",
        "an unsigned token": token("none", ""),
        "a token signed by another secret": token(secret="t" * 64),
        "a token signed by nothing": f"{token().rpartition('.')[0]}.",
        "a token of HS384": token("HS384", SECRET),
        "a token of HS512": token("HS512", SECRET),
        "a token for another audience": token(aud="another"),
        "a token of another issuer": token(iss="another"),
        "an expired token": token(exp=(NOW - hour).timestamp()),
        "a token of tomorrow": token(iat=(NOW + 24 * hour).timestamp(), exp=(NOW + 48 * hour).timestamp()),
        "a token for two": token(sub=[victim.customer_id, other.customer_id]),
        "a token for a pattern": token(sub="cus_%"),
        "a token for the name in capitals": token(sub=victim.customer_id.upper()),
        "a token with a space behind the name": token(sub=f"{victim.customer_id} "),
    }


def own(victim: Reader) -> dict[str, str]:
    return {
        OWN_KEY: victim.account.key,
        OWN_TOKEN: issue_token(SECRET, victim.customer_id, NOW, timedelta(hours=1)),
    }


def cells(credential: str, security: Security) -> set[Attempt]:
    """What a credential opens that is good for all routes of `security`."""
    return {
        Attempt(credential, endpoint.method, path)
        for endpoint in ENDPOINTS
        if endpoint.security is security
        for path in endpoint.paths
    }


def test_no_foreign_credential_reads_or_moves_a_customers_data_on_any_route(
    api: Api, victim: Reader, foreign_credentials: dict[str, str], warehouse: Client, engine: sa.Engine
) -> None:
    wait_until_landed(api.settings.spool_dir)
    before = operational_rows(engine)
    seen: set[Attempt] = set()
    tried: dict[str, Attempt] = {}
    with httpx.Client(base_url=api.url, timeout=10) as http:
        matrix = Matrix(http, victim.customer_id)
        for attempt, mark, answer in matrix.try_all(foreign_credentials | own(victim)):
            assert answer.status_code < 500, (attempt, answer.text)
            tried[mark] = attempt
            if tells_of_victim(answer, victim):
                seen.add(attempt)
    wait_until_landed(api.settings.spool_dir)
    assert operational_rows(engine) == before

    ids = warehouse.query(
        "select event_id from raw.usage_events where customer_id = {id:String}",
        parameters={"id": victim.customer_id},
    ).result_rows
    moved = {tried[name[: len(next(iter(tried)))]] for (name,) in ids if name != EVENT_ID}

    reports = cells(OPERATOR_KEY, Security.OPERATOR_KEY)
    sends = cells(OWN_KEY, Security.CUSTOMER_KEY)
    reads = cells(OWN_TOKEN, Security.CUSTOMER_TOKEN)
    assert reports
    assert moved == reports | sends
    assert seen - sends == reports | reads  # who sends may be told what was recorded: its own words


def tells_of_victim(answer: httpx.Response, victim: Reader) -> bool:
    """Whether an answer holds anything of the victim's; that it repeats what it refuses is no news."""
    text = answer.text + str(answer.headers)
    told = any(secret in text for secret in (FIGURE, EVENT_ID, "of-the-victim", f"{NAME}@example.com"))
    return told or (answer.is_success and victim.customer_id in text)


def operational_rows(engine: sa.Engine) -> dict[str, list[str]]:
    """All rows of all operational tables, as text."""
    with engine.connect() as connection:
        return {
            table: sorted(connection.scalars(sa.text(f'select t::text from "{table}" as t')))
            for table in sa.inspect(connection).get_table_names()
        }
