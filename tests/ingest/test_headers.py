"""Request ids, security headers, and which pages may read what."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import httpx
import pydantic
import pytest

from apex_pipelines.settings import Settings
from ingest_api.request_log import Answered, RequestLog
from ingest_api.responses import HttpError
from tests.ingest.conftest import Account, Api, event

CONSOLE = "https://console.apexmediation.com"


def test_each_answer_carries_an_id_which_is_the_clients_when_it_is_sane(
    http: httpx.Client, account: Account
) -> None:
    for given in ("a", "req-1.2_3:4/5@6=+", "X" * 128):
        answer = http.post(
            "/api/usage/track", json=event(), headers={**account.bearer, "x-request-id": given}
        )
        assert answer.headers.get_list("x-request-id") == [given]
    for insane in ("", "-x", "a b", "a\tb", "X" * 129, "<script>", 'a"b', "a'b", "é".encode()):
        answer = http.get(
            "/health", headers=[(b"x-request-id", insane if isinstance(insane, bytes) else insane.encode())]
        )
        assert uuid.UUID(answer.headers["x-request-id"]).version == 7


def test_each_error_names_its_request(http: httpx.Client) -> None:
    errors = [
        http.get("/nothing"),
        http.put("/api/usage/track"),
        http.post("/api/usage/track", content=b"{"),
        http.post("/api/usage/track", json=event()),
        http.post("/api/events", json={}),
        http.post("/webhooks/stripe", content=b"{}"),
    ]
    assert [answer.status_code for answer in errors] == [404, 405, 400, 401, 401, 503]
    for answer in errors:
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert len({answer.headers["x-request-id"] for answer in errors}) == len(errors)


def test_a_failure_can_be_found_in_the_log_by_its_id(new_api: Callable[..., Api], account: Account) -> None:
    api = new_api(APEX_LOG_FORMAT="json")
    headers = {**account.bearer, "x-request-id": "find-me"}
    httpx.post(f"{api.url}/api/usage/track", json=event(metric_type="smiles"), headers=headers)
    httpx.get(f"{api.url}/{account.key}", headers={"x-request-id": "leak"})
    api.stop()
    lines = [json.loads(line) for line in api.log.read_text().splitlines() if line.startswith("{")]
    (found,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert (found["status"], found["code"]) == (422, "unknown_metric")
    assert (found["method"], found["path"]) == ("POST", "/api/usage/track")
    assert account.key not in api.log.read_text()


def test_a_flood_of_failures_does_not_flood_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1.0
    requests = RequestLog("INFO", lambda: now)

    def write(name: str, error: HttpError) -> None:
        requests.write(Answered("POST", "/x", "none", name, error.status, 0.001), error, None)

    for _ in range(1000):
        write("id", HttpError(404, "not_found", "-"))
    write("ours", HttpError(503, "spool_full", "full"))
    now = 2.0
    write("last", HttpError(404, "not_found", "-"))
    lines = capsys.readouterr()
    written = (lines.out + lines.err).splitlines()
    assert len(written) == 20 + 1 + 1
    assert "ours" in written[20]
    assert "980" in written[-1]


def test_answers_tell_browsers_to_be_careful(http: httpx.Client, account: Account) -> None:
    answers = [
        http.post("/api/usage/track", json=event(), headers=account.bearer),
        http.get("/nothing"),
        http.get("/health"),
        http.get("/metrics"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    page = http.get("/docs")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_no_origin_is_allowed_unless_it_is_set(http: httpx.Client) -> None:
    for origin in (CONSOLE, "https://evil.example", "null"):
        for answer in (
            http.get("/openapi.json", headers={"origin": origin}),
            http.options("/docs", headers={"origin": origin, "access-control-request-method": "GET"}),
        ):
            assert not any(name.startswith("access-control") for name in answer.headers)
            assert answer.headers["vary"] == "Origin"


def test_an_allowed_origin_reads_people_facing_answers_and_no_others(new_api: Callable[..., Api]) -> None:
    api = new_api(APEX_API_CORS_ORIGINS=f"{CONSOLE}, http://localhost:5173")
    with httpx.Client(base_url=api.url) as http:
        for origin in (CONSOLE, "http://localhost:5173"):
            answer = http.get("/openapi.json", headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in answer.headers
            preflight = http.options(
                "/openapi.json", headers={"origin": origin, "access-control-request-method": "GET"}
            )
            assert (preflight.status_code, preflight.content) == (204, b"")
            assert "GET" in preflight.headers["access-control-allow-methods"]
            assert "authorization" in preflight.headers["access-control-allow-headers"]
        error = http.put("/openapi.json", headers={"origin": CONSOLE})
        assert (error.status_code, error.headers["access-control-allow-origin"]) == (405, CONSOLE)
        near = ("https://console.apexmediation.com.evil.example", f"{CONSOLE}:444", CONSOLE.upper(), "null",
                "http://console.apexmediation.com", "https://evil.example")  # fmt: skip
        for origin in near:
            answer = http.get("/openapi.json", headers={"origin": origin})
            assert "access-control-allow-origin" not in answer.headers
        machine = http.options(
            "/api/usage/track", headers={"origin": CONSOLE, "access-control-request-method": "POST"}
        )
        assert machine.status_code == 405
        assert "access-control-allow-origin" not in machine.headers


def test_a_wildcard_or_a_path_is_no_origin() -> None:
    for wrong in ("*", "https://*.example.com", "https://a.example/", "a.example", "https://A.example"):
        with pytest.raises(pydantic.ValidationError, match="is no origin"):
            Settings(api_cors_origins=wrong)
