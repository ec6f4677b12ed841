"""Logs: JSON lines in which every request can be found by its id, and no credential whatever."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.tokens import issue_token
from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.platform.logging import mask_secrets
from apex_pipelines.settings import Settings
from tests.conftest import free_port
from tests.ingest.conftest import Account, Api, LoaderProcess, event
from tests.ingest.webhook_bodies import RESEND_SECRET, SECRETS, STRIPE_SECRET, resend_headers, stripe_headers

JWT_SECRET = "not-to-be-seen-anywhere-0123456789"
DATABASE_PASSWORD = "hunter2hunter2"
HOUR = timedelta(hours=1)
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def lines(api: Api) -> list[dict[str, Any]]:
    """All that the API wrote; fails on a line that is no JSON."""
    return [json.loads(line) for line in api.log.read_text().splitlines()]


def test_every_request_can_be_found_by_its_id_with_route_status_and_duration(
    new_api: Callable[..., Api], account: Account
) -> None:
    api = new_api(APEX_LOG_FORMAT="json", APEX_LOG_LEVEL="DEBUG")
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        for path, name in (("/api/v1/usage/track", "good"), ("/api/usage/nothing", "lost")):
            http.post(path, json=event(), headers={"x-request-id": name})
        http.post("/api/usage/track", json=event(quantity="x"), headers={"x-request-id": "bad"})
    api.stop()
    found = {line["request_id"]: line for line in lines(api) if "request_id" in line}
    told = {name: (found[name]["route"], found[name]["status"], found[name]["level"]) for name in found}
    assert told["good"] == ("/api/usage/track", 200, "debug")
    assert told["lost"] == ("none", 404, "info")
    assert told["bad"] == ("/api/usage/track", 422, "info")
    assert all(0 < found[name]["duration_ms"] < 10_000 for name in ("good", "lost", "bad"))


def test_no_credential_is_written_wherever_it_was_sent(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    token = issue_token(JWT_SECRET, account.customer_id, NOW, HOUR)
    forged = jwt.encode({"sub": "cus_x"}, "another-secret-of-32-bytes-or-more")
    logging = {"APEX_LOG_FORMAT": "json", "APEX_LOG_LEVEL": "DEBUG"}
    api = new_api(APEX_JWT_SECRET=JWT_SECRET, **SECRETS, **logging)
    wrong_key = f"apx_live_{'w' * 40}"
    secrets = [account.key, wrong_key, token, forged]
    with httpx.Client(base_url=api.url, timeout=20) as http:
        for number, secret in enumerate(secrets):
            one = event(event_id=f"evt-{number}")
            time.sleep(1.0)  # at most 20 failures are written in a second, and all of these shall be
            for headers in (
                {"authorization": f"Bearer {secret}"},
                {"authorization": f"Basic {secret}"},
                {"authorization": secret, "cookie": f"key={secret}", "x-request-id": f"a:{secret[:126]}"},
            ):
                with_key = {**one, "api_key": secret}
                http.post(f"/api/usage/track?api_key={secret}", json=with_key, headers=headers)
                http.post(f"/api/usage/{secret}", json=one, headers=headers)
                http.post("/api/usage/track", content=json.dumps(with_key)[:-1], headers=headers)
                http.post("/api/usage/batch", json={"api_key": secret, "events": [one]}, headers=headers)
                http.get(f"/api/usage/analytics?days={secret}", headers=headers)
            one["metadata"] = {secret[:60]: secret}
            http.post("/api/usage/track", json={**one, "metric_type": secret[:60], "api_key": account.key})
            http.post("/api/usage/track", json={**one, "event_id": f"m-{number}", "api_key": account.key})
        http.get("/api/usage/current", headers={"authorization": f"Bearer {token}"})
        body = b'{"id": "evt_1", "type": "invoice.paid"}'
        for secret in ("whsec_d3Jvbmc", STRIPE_SECRET):
            http.post("/webhooks/stripe", content=body, headers=stripe_headers(body, secret=secret))
        for secret in ("whsec_d3Jvbmc=", RESEND_SECRET):
            http.post("/webhooks/resend", content=body, headers=resend_headers(body, secret=secret))
    landing = new_loader(**logging)
    wait_until_landed(settings.spool_dir, 30)
    os.kill(api.worker_pids()[0], signal.SIGKILL)  # the server itself says something now
    time.sleep(1.5)
    api.stop()
    landing.stop()
    # Stores that can't be reached, whose addresses hold passwords, make the loudest errors.
    away = f"127.0.0.1:{free_port()}"
    dark = new_api(
        APEX_DATABASE_URL=f"postgresql://apex:{DATABASE_PASSWORD}@{away}/apex",
        APEX_CLICKHOUSE_URL=f"http://default:{DATABASE_PASSWORD}@{away}",
        APEX_JWT_SECRET=JWT_SECRET,
        **logging,
    )
    for secret in (wrong_key, token):
        headers = {"authorization": f"Bearer {secret}"}
        httpx.post(f"{dark.url}/api/usage/track", json=event(), headers=headers, timeout=20)
        httpx.get(f"{dark.url}/api/usage/current", headers=headers, timeout=20)
    loader = new_loader(APEX_CLICKHOUSE_URL=f"http://default:{DATABASE_PASSWORD}@{away}", **logging)
    time.sleep(1.5)
    dark.stop()
    loader.stop()

    written = api.log.read_text() + loader.log.read_text()
    told = [json.loads(line) for line in written.splitlines()]  # whoever wrote it, each line is JSON
    assert len(told) > 60
    assert not any("left_out" in line for line in told)
    assert any("worker ended" in line["event"] for line in told)
    assert any("lookup" in line["event"] or "looked up" in line["event"] for line in told)
    for secret in (*secrets, *SECRETS.values(), JWT_SECRET, DATABASE_PASSWORD):
        # Not even a part: beyond what identifies a key, 12 characters in a row are too many.
        tail = secret[len("apx_live_") + 4 :]
        parts = {tail[start : start + 12] for start in range(len(tail) - 11)}
        assert not [part for part in parts if part in written], secret[:12]


def test_masking_keeps_what_identifies_a_secret_and_nothing_more() -> None:
    for secret, kept in (
        ("apx_live_abcdEFGH1234-_x", "apx_live_abcd***"),
        ("sk_live_abcdEFGH", "sk_live***"),
        ("whsec_abcd/EFG+HIJ==", "whsec_abcd***"),
        ("Bearer anything.at-all", "Bearer ***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "eyJhbGc***"),
        ("http://user:pass@host/", "http://user:***@host/"),
    ):
        assert mask_secrets(f"a {secret} b") == f"a {kept} b"
