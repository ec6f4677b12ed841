"""`/metrics`: each stage's figures after real traffic, as Prometheus' own parser reads them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from prometheus_client.parser import text_string_to_metric_families

from apex_pipelines.customers.keys import revoke_key
from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.settings import Settings
from ingest_api.exposition import render
from ingest_api.metrics import SharedCounters
from ingest_api.spool.segments import SpoolUsage
from tests.ingest.conftest import CREATED, Account, Api, LoaderProcess, event
from tests.ingest.waiting import until
from tests.ingest.webhook_bodies import SECRETS

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str) -> Figures:
    """All samples by name and labels; fails when a series stands twice."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Figures = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def figure(figures: Figures, name: str, **labels: str) -> float:
    return figures[name, frozenset(labels.items())]


def test_every_stage_from_request_to_table_is_counted(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    api = new_api()
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        track, batch = "/api/usage/track", "/api/v1/usage/batch"
        for name in ("a", "b", "b"):
            assert http.post(track, json=event(event_id=name)).status_code == 200
        assert http.post(track, json=event(metric_type="smiles")).status_code == 422
        mixed = [event(event_id="c"), event(event_id="a"), event(quantity=-1, event_id="d")]
        assert http.post(batch, json=mixed).status_code == 200
        assert http.get("/no/such/place").status_code == 404
    # What is counted last: an open segment's size shows once it is sealed.
    until(lambda: figure(scrape(api.url), "apex_ingest_spool_bytes") > 0)
    before = scrape(api.url)
    assert figure(before, "apex_ingest_events_accepted_total") == 3
    assert figure(before, "apex_ingest_events_duplicate_total") == 2
    rejected = "apex_ingest_events_rejected_total"
    assert figure(before, rejected, reason="unknown_metric") == 1
    assert figure(before, rejected, reason="negative_without_correction") == 1
    assert figure(before, rejected, reason="too_late") == 0
    assert figure(before, "apex_ingest_spooled_frames_total") == 3
    assert figure(before, "apex_ingest_spooled_bytes_total") > 3 * len(account.customer_id)
    assert figure(before, "apex_ingest_fsync_seconds_count") == 3
    assert 0 < figure(before, "apex_ingest_fsync_seconds_sum") < 3
    assert 0 < figure(before, "apex_ingest_backlog_seconds") < 60
    responses = "apex_ingest_responses_total"
    assert figure(before, responses, route="/api/usage/track", status="2xx") == 3
    assert figure(before, responses, route="/api/usage/track", status="4xx") == 1
    assert figure(before, responses, route="/api/usage/batch", status="2xx") == 1  # by its alias
    assert figure(before, responses, route="none", status="4xx") == 1
    seconds = "apex_ingest_request_duration_seconds"
    assert 0 < figure(before, f"{seconds}_sum", route="/api/usage/track", status="2xx") < 3
    assert (f"{seconds}_count", frozenset({("route", "/docs"), ("status", "2xx")})) not in before
    assert not any(name.startswith("apex_loader_") for name, _ in before)  # none has run here yet

    new_loader()
    wait_until_landed(settings.spool_dir, 30)
    time.sleep(1.2)  # an idle loader tells once a second
    after = scrape(api.url)
    assert figure(after, "apex_loader_rows_total") == 3
    assert figure(after, "apex_loader_segments_total") >= 1
    assert figure(after, "apex_loader_inserts_total") >= 1
    assert figure(after, "apex_loader_seconds_total") > 0
    assert figure(after, "apex_loader_failures_total") == figure(after, "apex_loader_dead_letters_total") == 0
    assert figure(after, "apex_loader_last_success_age_seconds") < 30
    assert figure(after, "apex_ingest_spool_bytes") == 0
    assert figure(after, "apex_ingest_backlog_seconds") == 0


def test_a_scrape_tells_of_all_workers_and_a_killed_one_takes_nothing_with_it(
    new_api: Callable[..., Api], account: Account
) -> None:
    api = new_api(workers=3)

    def send(number: int) -> int:
        # A connection of its own: the kernel spreads connections over workers.
        answer = httpx.post(
            f"{api.url}/api/usage/track", json=event(event_id=f"evt-{number}"), headers=account.bearer
        )
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(150))) == {200}
    # An answer is counted after it was sent.
    track = {"route": "/api/usage/track", "status": "2xx"}
    until(lambda: figure(scrape(api.url), "apex_ingest_responses_total", **track) == 150)
    for _ in range(10):
        figures = scrape(api.url)
        assert figure(figures, "apex_ingest_events_accepted_total") == 150
        assert figure(figures, "apex_ingest_responses_total", **track) == 150
    os.kill(api.worker_pids()[0], signal.SIGKILL)
    # Connections that the kernel had given to the dead worker are reset; the next ones are answered.
    deadline = time.monotonic() + 20
    sent = None
    while sent != 200:
        assert time.monotonic() < deadline
        with contextlib.suppress(httpx.TransportError):
            sent = send(150)
    assert figure(scrape(api.url), "apex_ingest_events_accepted_total") == 151


def test_refused_keys_tokens_and_signatures_are_counted_by_reason(
    new_api: Callable[..., Api], new_account: Callable[..., Account], engine: sa.Engine
) -> None:
    revoked, expired = new_account("revoked"), new_account("expired", expires_at=CREATED + timedelta(1))
    with engine.begin() as connection:
        revoke_key(connection, revoked.key_id, CREATED)
    api = new_api(**SECRETS)
    with httpx.Client(base_url=api.url) as http:
        for headers in ({}, revoked.bearer, expired.bearer, expired.bearer):
            assert http.post("/api/usage/track", json=event(), headers=headers).status_code == 401
        assert http.post("/api/events", json={}, headers={"authorization": "Bearer x"}).status_code == 401
        assert http.get("/api/usage/current").status_code == 401
        assert http.post("/webhooks/stripe", content=b"{}").status_code == 400
    figures = scrape(api.url)
    failures = {
        dict(labels)["reason"]: value
        for (name, labels), value in figures.items()
        if name == "apex_ingest_auth_failures_total" and value
    }
    assert failures == {
        "missing_api_key": 1,
        "revoked_api_key": 1,
        "expired_api_key": 2,
        "unknown_api_key": 1,
        "missing_token": 1,
        "bad_signature": 1,
    }


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.00051, 1.0, 99.0])
def test_a_flush_is_in_each_bucket_whose_limit_it_does_not_exceed(seconds: float) -> None:
    counters = SharedCounters(1, ["/x"])
    counters.row(0).flushed(seconds)
    counters.row(0).answered("/x", 200, seconds)
    families = {
        family.name: family
        for family in text_string_to_metric_families(render(counters, SpoolUsage(0, 0, None), 0, 0, None, 0))
    }
    for name in ("apex_ingest_fsync_seconds", "apex_ingest_request_duration_seconds"):
        buckets = [sample for sample in families[name].samples if sample.name.endswith("_bucket")]
        assert len(buckets) > 10
        for bucket in buckets:
            assert bucket.value == (seconds <= float(bucket.labels["le"]))
