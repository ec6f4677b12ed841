"""The documentation: it says what the API does, its examples work, and the API does nothing else."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.keys import issue_operator_key
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.settings import Settings
from ingest_api import openapi
from ingest_api.endpoints import ENDPOINTS, Endpoint, Security
from ingest_api.requests import Request
from ingest_api.responses import Response
from ingest_api.routing import Router
from tests.ingest.conftest import CREATED, Account, Api, event
from tests.ingest.webhook_bodies import SECRETS

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ERRORS = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503}


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_routes_and_document_name_the_same_paths_and_methods(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert documented == {(endpoint.method, path) for endpoint in ENDPOINTS for path in endpoint.paths}
    for path in document["paths"]:
        for method in METHODS:
            answer = http.request(method, path)
            assert (answer.status_code == 405) == ((method, path) not in documented), (method, path)
            if answer.status_code == 405:
                allowed = answer.headers["allow"].split(", ")
                assert {(name, path) for name in allowed if name in METHODS} <= documented
            assert answer.status_code != 404


def test_a_worker_does_not_start_when_handlers_and_endpoints_differ() -> None:
    async def handler(_request: Request) -> Response:
        return Response(200, b"", [])

    handlers = dict.fromkeys(ENDPOINTS, handler)
    Router(handlers)
    with pytest.raises(RuntimeError, match="track"):
        Router({endpoint: handler for endpoint in ENDPOINTS if endpoint.name != "track"})
    unlisted = Endpoint(method="GET", path="/x", name="unlisted", group="x", summary="x", answers=())
    with pytest.raises(RuntimeError, match="unlisted"):
        Router({**handlers, unlisted: handler})


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    text = json.dumps(document)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in document["components"]["schemas"]
    ids = []
    for methods in document["paths"].values():
        for operation in methods.values():
            ids.append(operation["operationId"])
            assert operation["summary"]
            assert "500" in operation["responses"]
            for status, response in operation["responses"].items():
                assert response["description"]
                assert response["headers"]["X-Request-Id"]
                for media in response["content"].values():
                    is_report = operation["operationId"] == "ready"
                    if int(status) in ERRORS and not (is_report and status == "503"):
                        assert media["schema"]["allOf"][0] == {"$ref": "#/components/schemas/ErrorBody"}
    assert len(ids) == len(set(ids))


def test_address_and_limits_are_documented_as_they_are_served(
    new_api: Callable[..., Api], settings: Settings
) -> None:
    api = new_api(
        APEX_API_PORT="1", APEX_API_MAX_BATCH_EVENTS="250", APEX_API_MAX_BODY_BYTES="70000",
        APEX_API_BODY_SECONDS="7.5", APEX_API_READS_PER_WINDOW="3", APEX_API_READS_WINDOW_SECONDS="60",
    )  # fmt: skip
    document = httpx.get(f"{api.url}/openapi.json").json()
    assert document["servers"] == [{"url": f"http://127.0.0.1:{settings.api_port}"}]
    batch = document["paths"]["/api/usage/batch"]["post"]
    assert batch["summary"] == "Record up to 250 events"
    assert "70,000 bytes" in batch["responses"]["413"]["description"]
    assert "7.5 s" in batch["responses"]["408"]["description"]
    limits = document["paths"]["/api/usage/limits"]["get"]
    assert "3 in 60 s" in limits["responses"]["429"]["description"]
    page = httpx.get(f"{api.url}/docs").text
    assert f"http://127.0.0.1:{settings.api_port}/api/usage/track" in page
    assert "127.0.0.1:1/" not in page


def test_quantities_are_documented_as_they_travel(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    taken = json.dumps(schemas["UsageEvent"]["properties"]["quantity"])
    given = json.dumps(schemas["Recorded"]["properties"]["quantity"])
    assert '"number"' in taken
    assert '"decimal"' in taken
    assert '"number"' in given
    assert '"decimal"' not in given


def test_each_example_works_when_pasted(
    new_api: Callable[..., Api],
    account: Account,
    engine: sa.Engine,
    settings: Settings,
    warehouse: Client,
) -> None:
    api = new_api(APEX_CLOCK="system", **SECRETS)
    with engine.begin() as connection:
        operator = issue_operator_key(connection, CREATED)
    document = httpx.get(f"{api.url}/openapi.json").json()
    now = datetime.now(UTC)
    with engine.begin() as connection:
        sync_plans(connection)
        subscribe(connection, NewSubscription(account.customer_id, "indie", CREATED), now)
    token = issue_token(token_secret(settings), account.customer_id, now, timedelta(hours=1))
    keys = {Security.CUSTOMER_KEY: account.key, Security.OPERATOR_KEY: operator.plaintext}
    ran = 0
    for methods in document["paths"].values():
        for operation in methods.values():
            security = Security(next(iter(operation["security"][0]))) if operation["security"] else None
            environment = {
                "PATH": "/usr/bin:/bin:/usr/local/bin",
                "KEY": keys.get(security, "") if security else "",
                "TOKEN": token,
                "CUSTOMER": account.customer_id,
                **SECRETS,
            }
            for sample in operation["x-codeSamples"]:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", sample["source"] + " -w '\\n%{http_code}'"],
                    env=environment, capture_output=True, text=True, timeout=30, check=False,
                )  # fmt: skip
                body, _, status = done.stdout.rpartition("\n")
                assert status == "200", (sample["source"], done.stdout, done.stderr)
                if body.startswith("{"):
                    assert json.loads(body).get("success", True) is True
                ran += 1
    assert ran >= len(document["paths"])


class _Page(html.parser.HTMLParser):
    """What a page loads, links to, and holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_every_endpoint_and_needs_nothing_from_elsewhere(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = _Page()
    page.feed(answer.text)
    text = "".join(page.text)
    for path, methods in document["paths"].items():
        assert path in text
        for operation in methods.values():
            assert operation["summary"] in text
            for sample in operation["x-codeSamples"]:
                assert sample["source"].partition("\n")[0] in text or "_alias" in operation["operationId"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form"}
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "/openapi.json"))
    assert "url(" not in answer.text
    assert "@import" not in answer.text
    assert http.head("/docs").status_code == 200


def test_a_query_is_documented_from_its_struct() -> None:
    """What endpoints with parameters need, such as the days of an analysis."""
    import msgspec

    class Days(msgspec.Struct):
        """Query.

        Attributes
        ----------
        days : int
            How many days back.
        """

        days: int = 30

    listing = Endpoint(method="GET", path="/x", name="x", group="x", summary="x", query=Days, answers=())
    operation = openapi.document([listing], "1", "http://x")["paths"]["/x"]["get"]
    (parameter,) = operation["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("days", "query", False)
    assert parameter["description"] == "How many days back."
    assert parameter["schema"]["default"] == 30


def test_answers_match_their_schemas(http: httpx.Client, account: Account, document: dict[str, Any]) -> None:
    """A sample by hand; schemathesis looks at thousands (see docs/operations.md)."""
    import jsonschema

    def check(path: str, answer: httpx.Response) -> None:
        described = document["paths"][path][answer.request.method.lower()]["responses"]
        schema = described[str(answer.status_code)]["content"][answer.headers["content-type"]]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})

    bearer = account.bearer
    track, batch = "/api/usage/track", "/api/usage/batch"
    for answer in (
        http.post(track, json=event(), headers=bearer),
        http.post(
            track, json=event(metric_type="mediated_revenue", quantity="0.5", event_id=None), headers=bearer
        ),
        http.post(track, json=event(quantity="x"), headers=bearer),
        http.post(track, content=b"{", headers=bearer),
        http.post(track, json=event()),
        http.post(track, content=b"{}", headers={"content-type": "image/png"}),
    ):
        check(track, answer)
    check(batch, http.post(batch, json=[event(), event(quantity="x")], headers=bearer))
    check("/health", http.get("/health"))
    check("/ready", http.get("/ready"))
