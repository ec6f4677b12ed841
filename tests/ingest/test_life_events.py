"""Life events: the operator reports them for any customer, and each counts once like telemetry."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.keys import ApiKeyError, issue_key, issue_operator_key, rotate_key
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.metering.life_events import LIFE_EVENTS, LifeEvent
from apex_pipelines.platform import catalogue
from apex_pipelines.settings import Settings
from tests.ingest.conftest import CREATED, Account, Api, LoaderProcess, event
from tests.ingest.spool_files import spooled
from tests.ingest.test_answers import NOW
from tests.ingest.waiting import until

# Each type with what it must say, and the metric and quantity that it counts as.
TYPES: list[tuple[dict[str, Any], str, int]] = [
    ({"event_type": "sdk_downloaded", "platform": "ios", "sdk_version": "5.2"}, "sdk_downloads", 1),
    ({"event_type": "console_login"}, "console_logins", 1),
    ({"event_type": "doc_viewed", "page": "/docs/ios"}, "doc_views", 1),
    ({"event_type": "support_ticket_opened", "ticket_id": "7"}, "support_tickets", 1),
    ({"event_type": "support_ticket_closed", "ticket_id": "7"}, "support_tickets_closed", 1),
    ({"event_type": "nps_score", "score": 0}, "nps_scores", 0),
    ({"event_type": "rating", "score": 5}, "ratings", 5),
    ({"event_type": "teammate_invited"}, "teammates_invited", 1),
    ({"event_type": "referral_used", "referral_code": "0123abcd"}, "referrals_used", 1),
    ({"event_type": "signup", "company_size": 500}, "signups", 1),
]
DETAILS = {"platform", "sdk_version", "page", "ticket_id", "referral_code", "company_size"}


@pytest.fixture
def operator(engine: sa.Engine) -> dict[str, str]:
    """Header with a key of the operator."""
    with engine.begin() as connection:
        key = issue_operator_key(connection, CREATED)
    return {"authorization": f"Bearer {key.plaintext}"}


def test_each_type_is_on_disk_as_a_metric_of_the_catalogue(
    http: httpx.Client, operator: dict[str, str], account: Account, settings: Settings
) -> None:
    for number, (body, _, _) in enumerate(TYPES):
        named = {**body, "customer_id": account.customer_id, "event_id": f"life-{number}"}
        answer = http.post("/api/events", json=named, headers=operator)
        assert answer.status_code == 200, answer.text
        assert answer.json()["recorded"] == {
            "customer_id": account.customer_id,
            "event_type": body["event_type"],
            "event_id": f"life-{number}",
        }
    rows = spooled(settings.spool_dir)
    assert [(row.metric_type, row.quantity) for row in rows] == [
        (metric, quantity) for _, metric, quantity in TYPES
    ]
    assert {row.customer_id for row in rows} == {account.customer_id}
    for row, (body, _, _) in zip(rows, TYPES, strict=True):
        assert json.loads(row.metadata) == {name: value for name, value in body.items() if name in DETAILS}


def test_every_type_has_its_metric_and_every_metric_of_life_its_type() -> None:
    assert {body["event_type"] for body, _, _ in TYPES} == {
        kind.__struct_config__.tag for kind in LIFE_EVENTS
    }
    used = {kind.metric_type for kind in LIFE_EVENTS}
    assert used <= set(catalogue.metrics())
    assert {name for name, metric in catalogue.metrics().items() if metric.kind == "life"} <= used
    for kind in LIFE_EVENTS:
        assert issubclass(kind, LifeEvent)
        assert set(kind.detail_fields) <= DETAILS


BAD: list[tuple[dict[str, Any], str]] = [
    ({"event_type": "promoted"}, "unknown_event_type"),
    ({"event_type": None}, "malformed_event"),
    ({"event_type": 5}, "unknown_event_type"),
    ({"customer_id": None}, "malformed_event"),
    ({"customer_id": "cus_nobody"}, "unknown_customer"),
    ({"customer_id": "a\u0000b"}, "unknown_customer"),
    ({"customer_id": ""}, "malformed_event"),
    ({"event_type": "sdk_downloaded"}, "malformed_event"),
    ({"event_type": "sdk_downloaded", "platform": "amiga"}, "malformed_event"),
    ({"event_type": "nps_score", "score": 11}, "malformed_event"),
    ({"event_type": "rating", "score": 0}, "malformed_event"),
    ({"event_type": "referral_used", "referral_code": "x"}, "malformed_event"),
    ({"event_id": ""}, "invalid_event_id"),
    ({"event_id": "a\u0001"}, "invalid_event_id"),
    ({"timestamp": "soon"}, "invalid_timestamp"),
    ({"timestamp": "2026-06-01T00:05:01Z"}, "too_early"),
    ({"timestamp": "2026-04-01T00:00:00Z"}, "too_late"),
    ({"metadata": {"a": []}}, "invalid_metadata"),
    ({"metadata": {f"k{i}": "v" * 1000 for i in range(9)}}, "metadata_too_large"),
]


def test_each_bad_event_is_refused_with_its_reason(
    http: httpx.Client, operator: dict[str, str], account: Account, settings: Settings
) -> None:
    good = {"event_type": "console_login", "customer_id": account.customer_id, "event_id": "e"}
    for changes, code in BAD:
        body = {name: value for name, value in {**good, **changes}.items() if value is not None}
        answer = http.post("/api/v1/events", json=body, headers=operator)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code), (changes, answer.text)
    assert http.post("/api/events", content=b"{", headers=operator).status_code == 400
    assert spooled(settings.spool_dir) == []


def test_only_the_operator_reports_life_events_and_only_customers_report_usage(
    http: httpx.Client, operator: dict[str, str], account: Account, settings: Settings
) -> None:
    body = {"event_type": "console_login", "customer_id": account.customer_id}
    assert http.post("/api/events", json=body).status_code == 401
    refused = http.post("/api/events", json=body, headers=account.bearer)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
    refused = http.post("/api/usage/track", json=event(), headers=operator)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
    # A customer must not earn itself credits: what is reported as life can't be sent as telemetry.
    squatter = http.post("/api/usage/track", json=event(metric_type="referrals_used"), headers=account.bearer)
    assert (squatter.status_code, squatter.json()["error"]["code"]) == (422, "unknown_metric")
    assert spooled(settings.spool_dir) == []


def test_keys_of_the_operator_have_no_customer_and_others_do(engine: sa.Engine, account: Account) -> None:
    with engine.begin() as connection:
        key = issue_operator_key(connection, CREATED, historical=True)
        assert key.customer_id is None
        twin = rotate_key(connection, key.id, NOW)
        assert (twin.customer_id, set(twin.scopes)) == (None, {KeyScope.OPERATOR, KeyScope.HISTORICAL})
        with pytest.raises(ApiKeyError, match="belongs to no customer"):
            issue_key(connection, account.customer_id, CREATED, scopes=(KeyScope.OPERATOR,))
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(
            sa.text("update api_keys set scopes = array['operator'] where customer_id is not null")
        )


def test_a_repeat_is_called_a_duplicate_and_each_event_lands_once(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    operator: dict[str, str],
    account: Account,
) -> None:
    api = new_api()
    body = {"event_type": "nps_score", "score": 9, "customer_id": account.customer_id, "event_id": "nps-1"}
    with httpx.Client(base_url=api.url, headers=operator) as http:
        assert "duplicate" not in http.post("/api/events", json=body).json()
        assert http.post("/api/events", json={**body, "score": 3}).json()["duplicate"] is True
    api.kill()  # what was acknowledged survives it
    new_loader()
    query = "select metric_type, quantity, metadata from raw.usage_events where event_id = 'nps-1'"
    until(lambda: bool(warehouse.query(query).result_rows))
    assert warehouse.query(query).result_rows == [("nps_scores", 9, "{}")]


def test_without_postgres_known_customers_go_on_and_others_are_asked_for_later(
    new_api: Callable[..., Api], operator: dict[str, str], account: Account, engine: sa.Engine
) -> None:
    api = new_api(APEX_API_KEY_CACHE_SECONDS="0.1")
    body = {"event_type": "console_login", "customer_id": account.customer_id}
    with httpx.Client(base_url=api.url, headers=operator) as http:
        assert http.post("/api/events", json=body).status_code == 200
        with engine.begin() as connection:
            connection.execute(sa.text("alter table customers rename to customers_away"))
        assert http.post("/api/events", json=body).status_code == 200
        other = http.post("/api/events", json={**body, "customer_id": "cus_other"})
        assert (other.status_code, other.json()["error"]["code"]) == (503, "customers_unavailable")
        assert int(other.headers["retry-after"]) > 0
        with engine.begin() as connection:
            connection.execute(sa.text("alter table customers_away rename to customers"))
        assert http.post("/api/events", json={**body, "customer_id": "cus_other"}).status_code == 422
