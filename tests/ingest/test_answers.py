"""What clients get to hear: every kind of good and bad input has its documented answer."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import sqlalchemy as sa

from apex_pipelines.customers.keys import revoke_key
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.settings import Settings
from tests.ingest.conftest import Account, Api, event
from tests.ingest.spool_files import spooled
from tests.ingest.waiting import until

NOW = datetime(2026, 6, 1, tzinfo=UTC)  # where the settings of these tests let time stand


def test_a_tracked_event_is_on_disk_when_it_is_acknowledged(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    body = event(
        api_key=account.key, metric_type="data_transfer", quantity=0.5, timestamp="2026-05-31T23:00:00+02:00",
        metadata={"platform": "ios", "debug": True},
    )  # fmt: skip
    answer = http.post("/api/usage/track", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "recorded": {
            "customer_id": account.customer_id,
            "metric_type": "data_transfer",
            "quantity": 0.5,
            "event_id": "evt-1",
        },
    }
    (row,) = spooled(settings.spool_dir)
    assert row.customer_id == account.customer_id
    assert row.quantity == 500_000_000  # bytes
    assert row.event_time_ms == datetime(2026, 5, 31, 21, tzinfo=UTC).timestamp() * 1000
    assert row.accepted_at_us == NOW.timestamp() * 1_000_000
    assert json.loads(row.metadata) == {"platform": "ios", "debug": True}


EXACT = [
    ("mediated_revenue", "0.1", 100_000),
    ("mediated_revenue", '"0.1"', 100_000),
    ("mediated_revenue", "0.100000", 100_000),
    ("mediated_revenue", "123456789.123457", 123_456_789_123_457),
    ("mediated_revenue", "1e-6", 1),
    ("data_transfer", "0.000000001", 1),
    ("data_transfer", "999999.999999999", 999_999_999_999_999),
    ("impressions", "1e15", 10**15),
    ("impressions", "7.0", 7),
    ("impressions", "0", 0),
    ("impressions", "-0.0", 0),
]


def test_decimals_are_stored_exactly(http: httpx.Client, account: Account, settings: Settings) -> None:
    for metric, sent, _ in EXACT:
        body = f'{{"metric_type": "{metric}", "quantity": {sent}}}'
        answer = http.post("/api/v1/usage/track", content=body, headers=account.bearer)
        assert answer.status_code == 200, body
    rows = [(row.metric_type, row.quantity) for row in spooled(settings.spool_dir)]
    assert rows == [(metric, stored) for metric, _, stored in EXACT]


BAD_EVENTS = [
    ({"metric_type": "smiles"}, "unknown_metric"),
    ({"metric_type": 5}, "unknown_metric"),
    ({"metric_type": None}, "malformed_event"),
    ({"quantity": None}, "malformed_event"),
    ({"quantity": True}, "invalid_quantity"),
    ({"quantity": "many"}, "invalid_quantity"),
    ({"quantity": "NaN"}, "invalid_quantity"),
    ({"quantity": "-Infinity"}, "invalid_quantity"),
    ({"quantity": [1]}, "invalid_quantity"),
    ({"quantity": 1.5}, "quantity_too_precise"),
    ({"quantity": "1e-400"}, "quantity_too_precise"),
    ({"metric_type": "mediated_revenue", "quantity": "0.0000001"}, "quantity_too_precise"),
    ({"quantity": 10**15 + 1}, "quantity_too_large"),
    ({"quantity": 10**80}, "quantity_too_large"),
    ({"quantity": "1e999999999"}, "quantity_too_large"),
    ({"metric_type": "data_transfer", "quantity": 1_000_001}, "quantity_too_large"),
    ({"quantity": -1}, "negative_without_correction"),
    ({"quantity": -1, "reason": "counted twice"}, "negative_without_correction"),
    ({"quantity": -1, "corrects_event_id": "evt-0"}, "negative_without_correction"),
    ({"quantity": 1, "reason": "x", "corrects_event_id": "evt-0"}, "correction_not_negative"),
    ({"quantity": -1, "reason": "x", "corrects_event_id": "evt-1"}, "invalid_correction"),
    ({"quantity": -1, "reason": "", "corrects_event_id": "evt-0"}, "invalid_correction"),
    ({"event_id": ""}, "invalid_event_id"),
    ({"event_id": "x" * 129}, "invalid_event_id"),
    ({"event_id": "a\u0000b"}, "invalid_event_id"),
    ({"event_id": 7}, "invalid_event_id"),
    ({"timestamp": "yesterday"}, "invalid_timestamp"),
    ({"timestamp": 1767225600}, "invalid_timestamp"),
    ({"timestamp": "2026-06-01T00:05:00.001Z"}, "too_early"),
    ({"timestamp": "2026-04-26T23:59:59.999Z"}, "too_late"),
    ({"metadata": []}, "invalid_metadata"),
    ({"metadata": {"a": {"b": 1}}}, "invalid_metadata"),
    ({"metadata": {f"k{i}": 1 for i in range(33)}}, "invalid_metadata"),
    ({"metadata": {"k" * 65: 1}}, "invalid_metadata"),
    ({"metadata": {"k": "v" * 1025}}, "invalid_metadata"),
    ({"metadata": {f"k{i}": "v" * 1000 for i in range(9)}}, "metadata_too_large"),
    ({"metric_type": "feature_used"}, "metadata_key_missing"),
]


def test_each_bad_event_is_refused_with_its_reason_and_a_batch_goes_on_without_it(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    for changes, reason in BAD_EVENTS:
        answer = http.post("/api/usage/track", json=event(**changes), headers=account.bearer)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, reason), changes
        assert answer.json()["success"] is False
        assert answer.json()["error"]["message"]

        good = event(event_id=f"good after {changes}"[:128])
        answer = http.post("/api/usage/batch", json=[event(**changes), good], headers=account.bearer)
        assert answer.status_code == 200
        body = answer.json()
        assert (body["success"], body["accepted"], body["rejected"]) == (False, 1, 1), changes
        assert body["results"][0]["reason"] == reason
        assert body["results"][0]["status"] == "rejected"
    assert len(spooled(settings.spool_dir)) == len(BAD_EVENTS)

    reasons = [reason for _, reason in BAD_EVENTS]
    exposed = http.get("/metrics").text
    assert (
        f'apex_ingest_events_rejected_total{{reason="too_late"}} {2 * reasons.count("too_late")}' in exposed
    )
    assert f"apex_ingest_events_accepted_total {len(BAD_EVENTS)}" in exposed


def test_both_ends_of_the_time_limits_still_count(http: httpx.Client, account: Account) -> None:
    for at in ("2026-06-01T00:05:00Z", "2026-04-27T00:00:00Z"):
        answer = http.post("/api/usage/track", json=event(timestamp=at, event_id=at), headers=account.bearer)
        assert answer.status_code == 200, at


def test_a_historical_key_may_send_old_events_but_none_from_the_future(
    http: httpx.Client, new_account: Callable[..., Account]
) -> None:
    importer = new_account("importer", scopes=(KeyScope.INGEST, KeyScope.HISTORICAL))
    for at, status in [("1997-01-01T00:00:00Z", 200), ("1969-12-31T00:00:00Z", 422), ("2026-06-02", 422)]:
        answer = http.post("/api/usage/track", json=event(timestamp=at), headers=importer.bearer)
        assert answer.status_code == status, answer.text


def test_a_correction_is_recorded_with_what_it_corrects(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    body = event(quantity=-2, reason="counted twice", corrects_event_id="evt-0")
    assert (
        http.post("/api/usage/track", json=body, headers=account.bearer).json()["recorded"]["quantity"] == -2
    )
    (row,) = spooled(settings.spool_dir)
    assert (row.quantity, row.corrects_event_id, row.correction_reason) == (-2, "evt-0", "counted twice")


GZIP = {"content-encoding": "gzip"}
NDJSON = {"content-type": "application/x-ndjson"}
BAD_REQUESTS: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("/api/usage/track", b"{", {}, 400, "invalid_json"),
    ("/api/usage/track", b"", {}, 400, "invalid_json"),
    ("/api/usage/track", b'{"quantity": NaN}', {}, 400, "invalid_json"),
    ("/api/usage/track", b'{"metric_type": "\xff"}', {}, 400, "invalid_encoding"),
    ("/api/usage/track", b'{"x": ' + b"[" * 100_000, {}, 400, "invalid_json"),
    ("/api/usage/track", b"[]", {}, 422, "malformed_event"),
    ("/api/usage/batch", b'{"events": 5}', {}, 400, "invalid_batch"),
    ("/api/usage/batch", b'"events"', {}, 400, "invalid_batch"),
    ("/api/usage/batch", b"[1, 2", {}, 400, "invalid_json"),
    ("/api/usage/batch", b"\x1f\x8b broken", GZIP, 400, "broken_gzip"),
    ("/api/usage/batch", gzip.compress(b"[]" * 99)[:-9], GZIP, 400, "broken_gzip"),
    ("/api/usage/batch", b"[]", {"content-encoding": "br"}, 415, "unsupported_encoding"),
    ("/api/usage/batch", b" " * 1_048_577, {}, 413, "body_too_large"),
    ("/api/usage/batch", gzip.compress(b" " * 50_000_000), GZIP, 413, "body_too_large"),
    ("/api/usage/batch", b"[" + b"{}," * 1000 + b"{}]", {}, 413, "too_many_events"),
    ("/api/usage/batch", b"{}\n" * 1001, NDJSON, 413, "too_many_events"),
    ("/api/usage/nothing", b"{}", {}, 404, "not_found"),
]


def test_each_bad_request_gets_a_clear_error_and_harms_nothing(http: httpx.Client, account: Account) -> None:
    for path, body, headers, status, code in BAD_REQUESTS:
        answer = http.post(path, content=body, headers={**account.bearer, **headers})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body[:40]
        assert answer.json()["success"] is False
        assert answer.json()["error"]["message"]
        assert http.post("/api/usage/track", json=event(), headers=account.bearer).status_code == 200


def test_a_body_sent_in_chunks_is_limited_too(http: httpx.Client, account: Account) -> None:
    def endless(chunks: int) -> Iterator[bytes]:
        yield b"["
        for _ in range(chunks):
            yield b" " * 65_536
        yield b"]"

    small = http.post("/api/usage/batch", content=endless(3), headers=account.bearer)
    assert (small.status_code, small.json()["accepted"]) == (200, 0)
    large = http.post("/api/usage/batch", content=endless(40), headers=account.bearer)
    assert large.status_code == 413


def test_the_wrong_method_is_told_the_right_one(http: httpx.Client) -> None:
    answer = http.get("/api/usage/track")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_batches_come_as_object_array_ndjson_and_gzip(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    def events(name: str) -> list[dict[str, object]]:
        return [event(event_id=f"{name}-{number}") for number in range(3)]

    ndjson = b"\n".join(json.dumps(row).encode() for row in events("ndjson")) + b"\nnot json\n\n"
    sent = [
        http.post("/api/usage/batch", json={"api_key": account.key, "events": events("object")}),
        http.post("/api/usage/batch", json=events("array"), headers=account.bearer),
        http.post(
            "/api/v1/usage/batch",
            content=gzip.compress(json.dumps(events("gzip")).encode()),
            headers={**account.bearer, "content-encoding": "gzip"},
        ),
        http.post(
            "/api/usage/batch",
            content=ndjson,
            headers={**account.bearer, "content-type": "application/x-ndjson; charset=utf-8"},
        ),
    ]
    assert [answer.status_code for answer in sent] == [200] * 4
    assert [answer.json()["accepted"] for answer in sent] == [3] * 4
    last = sent[-1].json()
    assert (last["success"], last["rejected"], last["results"][-1]["reason"]) == (False, 1, "malformed_event")
    expected = {f"{name}-{number}" for name in ("object", "array", "gzip", "ndjson") for number in range(3)}
    assert {row.event_id for row in spooled(settings.spool_dir)} == expected


def test_an_event_without_id_gets_one_that_carries_its_time(
    http: httpx.Client, account: Account, settings: Settings
) -> None:
    answer = http.post("/api/usage/track", json=event(event_id=None), headers=account.bearer)
    event_id = answer.json()["recorded"]["event_id"]
    assert event_id[14] == "7"  # a UUID of version 7
    assert [row.event_id for row in spooled(settings.spool_dir)] == [event_id]


def test_a_repeated_event_is_called_a_duplicate_and_not_written_again(
    http: httpx.Client, account: Account, new_account: Callable[..., Account], settings: Settings
) -> None:
    assert "duplicate" not in http.post("/api/usage/track", json=event(), headers=account.bearer).json()
    again = http.post(
        "/api/usage/track", json=event(timestamp="2026-05-30T00:00:00Z"), headers=account.bearer
    )
    assert (again.status_code, again.json()["success"], again.json()["duplicate"]) == (200, True, True)
    batch = [event(), event(event_id="evt-2"), event(event_id="evt-2", quantity=9)]
    body = http.post("/api/usage/batch", json=batch, headers=account.bearer).json()
    assert [result["status"] for result in body["results"]] == ["duplicate", "accepted", "duplicate"]
    assert (body["success"], body["accepted"], body["duplicates"]) == (True, 1, 2)
    # Another customer's event of the same name is another event.
    other = new_account("bob")
    assert "duplicate" not in http.post("/api/usage/track", json=event(), headers=other.bearer).json()
    rows = [(row.customer_id, row.event_id) for row in spooled(settings.spool_dir)]
    assert rows == [
        (account.customer_id, "evt-1"),
        (account.customer_id, "evt-2"),
        (other.customer_id, "evt-1"),
    ]


def test_keys_decide_who_may_send_and_for_whom(
    http: httpx.Client, account: Account, new_account: Callable[..., Account], settings: Settings
) -> None:
    expired = new_account("eve", expires_at=datetime(2026, 5, 31, tzinfo=UTC))
    unknown = "apx_live_" + "x" * 43
    cases = [
        ({}, None, "missing_api_key"),
        ({"authorization": f"Bearer {unknown}"}, None, "unknown_api_key"),
        ({"authorization": "Bearer nonsense"}, None, "unknown_api_key"),
        # The header wins over the body, also when it is the worse of the two.
        ({"authorization": f"Bearer {unknown}"}, account.key, "unknown_api_key"),
        (expired.bearer, None, "expired_api_key"),
    ]
    for headers, key, code in cases:
        answer = http.post("/api/usage/track", json=event(api_key=key), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    body = event(customer_id="cus_of_somebody_else")
    recorded = http.post("/api/usage/track", json=body, headers=account.bearer).json()["recorded"]
    assert recorded["customer_id"] == account.customer_id
    assert len(spooled(settings.spool_dir)) == 1


def test_a_revoked_key_stops_working_once_the_cache_has_aged(
    new_api: Callable[..., Api], account: Account, engine: sa.Engine
) -> None:
    api = new_api(APEX_API_KEY_CACHE_SECONDS="0.2")
    with httpx.Client(base_url=api.url) as http:
        assert http.post("/api/usage/track", json=event(), headers=account.bearer).status_code == 200
        with engine.begin() as connection:
            revoke_key(connection, account.key_id, NOW)
        until(lambda: http.post("/api/usage/track", json=event(), headers=account.bearer).status_code == 401)
        answer = http.post("/api/usage/track", json=event(), headers=account.bearer)
        assert answer.json()["error"]["code"] == "revoked_api_key"


def test_known_keys_work_on_while_postgres_is_away(
    new_api: Callable[..., Api], account: Account, new_account: Callable[..., Account], engine: sa.Engine
) -> None:
    api = new_api(APEX_API_KEY_CACHE_SECONDS="0")
    stranger = new_account("late")
    with httpx.Client(base_url=api.url) as http:
        assert http.post("/api/usage/track", json=event(), headers=account.bearer).status_code == 200
        assert http.get("/ready").json()["status"] == "ready"
        database = engine.url.database
        away = f"{database}_away"
        _rename(engine, str(database), away)
        try:
            known = http.post("/api/usage/track", json=event(event_id="evt-2"), headers=account.bearer)
            assert known.status_code == 200
            unknown = http.post("/api/usage/track", json=event(), headers=stranger.bearer)
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "keys_unavailable")
            assert int(unknown.headers["retry-after"]) > 0
            # A balancer must leave it in, or known keys would not work on.
            degraded = http.get("/ready")
            assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
            checks = degraded.json()["checks"]
            assert [checks[name]["ok"] for name in ("postgres", "keys", "spool")] == [False, True, True]
        finally:
            _rename(engine, away, str(database))
        until(lambda: http.post("/api/usage/track", json=event(), headers=stranger.bearer).status_code == 200)


def _rename(engine: sa.Engine, old: str, new: str) -> None:
    """Take a database away from its users, as an outage would; all tests share the server itself."""
    engine.dispose()
    admin = sa.create_engine(engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(
            sa.text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"),
            {"name": old},
        )
        connection.execute(sa.text(f'alter database "{old}" rename to "{new}"'))
    admin.dispose()


def test_a_client_that_goes_away_half_way_harms_nothing(
    api: Api, http: httpx.Client, account: Account, settings: Settings
) -> None:
    head = f"POST /api/usage/track HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
    for _ in range(3):
        with socket.create_connection((settings.api_host, settings.api_port)) as connection:
            connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"metric_type": '.encode())
            connection.shutdown(socket.SHUT_WR)
            assert b"body_cut_off" in connection.recv(4096)
    assert http.post("/api/usage/track", json=event(), headers=account.bearer).status_code == 200
    assert len(spooled(settings.spool_dir)) == 1
    assert "request failed" not in api.log.read_text()


def test_a_full_spool_asks_clients_to_come_back_later(new_api: Callable[..., Api], account: Account) -> None:
    api = new_api(APEX_SPOOL_HARD_LIMIT_BYTES="20000", APEX_SPOOL_SEGMENT_MAX_BYTES="5000")
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:

        def is_refused() -> bool:
            answer = http.post("/api/usage/batch", json=[event(event_id=None)] * 100)
            if answer.status_code == 200:
                return False
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "spool_full")
            assert int(answer.headers["retry-after"]) > 0
            return True

        until(is_refused)
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["checks"]["spool"]["ok"]) == (503, False)
        assert http.get("/health").status_code == 200


def test_a_disk_that_takes_no_more_refuses_and_recovers(
    new_api: Callable[..., Api], account: Account, settings: Settings
) -> None:
    """No file may grow beyond a limit here, which fails writes half-way as a full disk does."""
    limit = 100_000
    api = new_api(preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        large = [event(event_id=None, metadata={"text": "x" * 500})] * 300
        answer = http.post("/api/usage/batch", json=large)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert http.post("/api/usage/track", json=event()).status_code == 200
    assert [row.event_id for row in spooled(settings.spool_dir)] == ["evt-1"]


def test_a_port_in_use_is_said_in_one_line(api: Api) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "ingest_api", "--port", str(api.settings.api_port)],
        env=api.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.strip().splitlines() == [
        f"error: port {api.settings.api_port} on 127.0.0.1 is in use; stop what uses it or set APEX_API_PORT"
    ]


def test_no_key_is_ever_logged(api: Api, http: httpx.Client, account: Account) -> None:
    http.post("/api/usage/track", json=event(), headers=account.bearer)
    http.post("/api/usage/track", json=event(api_key=account.key + "x"))
    api.stop()
    assert account.key[13:] not in api.log.read_text()
