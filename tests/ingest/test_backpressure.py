"""Clients are told to slow down before anything is refused for good, and told for how long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.customers.models import KeyScope
from apex_pipelines.platform.ingest_client import ClientEvent, IngestClient
from apex_pipelines.settings import Settings
from ingest_api.rate_limit import KeyRates, RateExceeded
from ingest_api.spool.backlog import DrainEstimate
from ingest_api.spool.group_commit import SpoolBusy, SpoolFull, SpoolLimits, SpoolUnavailable, SpoolWriter
from ingest_api.spool.segments import SEALED, list_segments
from tests.ingest.conftest import Account, Api, event
from tests.ingest.spool_files import spooled
from tests.ingest.waiting import until


class Ticks:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def refusal(rates: KeyRates, events: int) -> RateExceeded | None:
    """What a request of `events` events hears; None when it passes."""
    try:
        rates.take(b"k", events)
    except RateExceeded as error:
        return error
    return None


def test_a_key_gets_its_burst_and_then_its_rate() -> None:
    ticks = Ticks()
    rates = KeyRates(10.0, 50.0, ticks)
    for _ in range(50):
        rates.take(b"a", 1)
    with pytest.raises(RateExceeded) as refused:
        rates.take(b"a", 1)
    assert (refused.value.left, refused.value.wait) == (0, pytest.approx(0.1))
    rates.take(b"b", 50)  # another key has its own
    ticks.now += 3
    rates.take(b"a", 30)
    with pytest.raises(RateExceeded):
        rates.take(b"a", 1)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.floats(0.0, 20.0)), max_size=60),
    st.floats(1.0, 100.0),
    st.integers(1, 200),
)
def test_the_told_wait_is_enough_and_no_more_than_needed(
    steps: list[tuple[int, float]], rate: float, burst: int
) -> None:
    ticks = Ticks()
    rates = KeyRates(rate, burst, ticks)
    for events, pause in steps:
        ticks.now += pause
        refused = refusal(rates, events)
        if refused is None:
            continue
        assert 0 <= refused.left < max(events, 1)
        if refused.wait > 2e-3:
            ticks.now += refused.wait - 1e-3
            assert refusal(rates, events) is not None
        ticks.now += 2e-3
        assert refusal(rates, events) is None


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.0, 5.0)), min_size=1, max_size=80))
def test_over_any_time_no_more_passes_than_burst_and_rate_allow(steps: list[tuple[int, float]]) -> None:
    ticks = Ticks()
    rates = KeyRates(7.0, 30.0, ticks)
    passed: list[tuple[float, int]] = []
    for events, pause in steps:
        ticks.now += pause
        if refusal(rates, events) is not None:
            continue
        passed.append((ticks.now, events))
    for first in range(len(passed)):
        total = 0
        for at, events in passed[first:]:
            total += events
            assert total <= 30.0 + 7.0 * (at - passed[first][0]) + 1e-6


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_for() -> None:
    ticks = Ticks()
    rates = KeyRates(10.0, 50.0, ticks)
    rates.take(b"k", 200)
    with pytest.raises(RateExceeded) as refused:
        rates.take(b"k", 200)
    assert refused.value.wait == pytest.approx(20.0)


def test_what_was_not_recorded_is_given_back_and_no_limit_means_none() -> None:
    rates = KeyRates(10.0, 50.0, Ticks())
    for _ in range(20):
        rates.take(b"k", 50)
        rates.give_back(b"k", 50)
    unlimited = KeyRates(0.0, 1.0, Ticks())
    for _ in range(20):
        unlimited.take(b"k", 1_000_000)
    unlimited.give_back(b"k", 1)


def test_keys_that_are_silent_are_forgotten() -> None:
    ticks = Ticks()
    rates = KeyRates(10.0, 50.0, ticks)
    for number in range(30_000):
        ticks.now += 0.01
        rates.take(b"%d" % number, 1)
    assert len(rates._full_at) <= 10_001


def test_the_wait_for_the_spool_follows_how_fast_it_drains() -> None:
    estimate = DrainEstimate()
    assert estimate.seconds_until(1_000, 0.0) == 1  # nothing is known yet
    estimate.saw(10_000, 0.0)
    estimate.saw(9_000, 1.0)
    estimate.saw(8_000, 2.0)
    assert estimate.seconds_until(4_000, 2.0) == 5  # 1,000 bytes a second, a byte below the limit
    estimate.saw(8_000, 12.0)
    assert estimate.seconds_until(4_000, 12.0) == 10  # it stands: as long again as it has stood
    assert estimate.seconds_until(4_000, 500.0) == 60
    estimate.saw(3_000, 13.0)
    assert estimate.seconds_until(4_000, 13.0) == 1


async def fill(writer: SpoolWriter) -> None:
    """Append until that is refused."""
    for _ in range(1_000):
        await writer.append(b"x" * 90, 1)
        await asyncio.sleep(0.005)


def test_a_spool_that_fills_up_slows_first_and_refuses_last(tmp_path: Path) -> None:
    limits = SpoolLimits(segment_size=100, segment_age=0.05, spool_size=500_000, soft_size=2_000)

    async def use() -> None:
        writer = SpoolWriter(tmp_path, "w0", limits, asyncio.get_running_loop(), lambda _: None)
        with pytest.raises(SpoolBusy):
            await fill(writer)
        assert not writer.is_full
        (tmp_path / "w9-0.seg").write_bytes(b"x" * 500_000)  # as another worker may write
        while not writer.is_full:  # it goes on counting although nobody may write
            await asyncio.sleep(0.01)
        with pytest.raises(SpoolFull) as refused:
            await writer.append(b"y", 1)
        assert refused.value.retry_after >= 1
        for path in list_segments(tmp_path, SEALED):
            path.unlink()
        for _ in range(300):
            with contextlib.suppress(SpoolUnavailable):
                await writer.append(b"room again", 1)
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("it did not notice that there is room again")
        await asyncio.to_thread(writer.close)

    asyncio.run(use())


def test_a_key_above_its_rate_hears_when_to_come_back_and_is_then_served(
    new_api: Callable[..., Api], account: Account, new_account: Callable[..., Account], settings: Settings
) -> None:
    api = new_api(APEX_API_KEY_EVENTS_PER_SECOND="50", APEX_API_KEY_BURST_EVENTS="100")
    other = new_account("bob")
    importer = new_account("importer", scopes=(KeyScope.INGEST, KeyScope.HISTORICAL))

    def batch(name: str, size: int) -> list[dict[str, object]]:
        return [event(event_id=f"{name}-{number}") for number in range(size)]

    with httpx.Client(base_url=api.url) as http:
        path = "/api/usage/batch"
        assert http.post(path, json=batch("a", 100), headers=account.bearer).status_code == 200
        refused = http.post(path, json=batch("b", 60), headers=account.bearer)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        seconds = int(refused.headers["retry-after"])
        assert seconds in (1, 2)
        assert refused.headers["ratelimit-limit"] == "100"
        assert 0 <= int(refused.headers["ratelimit-remaining"]) < 60
        assert refused.headers["ratelimit-reset"] == str(seconds)
        assert refused.headers["ratelimit-policy"] == "50;w=1;burst=100"
        # Neither other customers nor an import of old data have to wait for this one.
        assert http.post("/api/usage/track", json=event(), headers=other.bearer).status_code == 200
        for number in range(5):
            answer = http.post(path, json=batch(f"old-{number}", 100), headers=importer.bearer)
            assert answer.status_code == 200
        time.sleep(seconds)
        assert http.post(path, json=batch("b", 60), headers=account.bearer).status_code == 200
        assert 'apex_ingest_throttled_total{cause="key_rate"} 1\n' in http.get("/metrics").text
    names = [row.event_id for row in spooled(settings.spool_dir) if row.customer_id == account.customer_id]
    assert len(names) == len(set(names)) == 160


def test_a_client_that_obeys_gets_everything_through(
    new_api: Callable[..., Api], account: Account, settings: Settings
) -> None:
    api = new_api(APEX_API_KEY_EVENTS_PER_SECOND="500", APEX_API_KEY_BURST_EVENTS="500")
    events = [
        ClientEvent(event_id=f"e{n}", metric_type="impressions", quantity=1, timestamp="2026-05-31T00:00:00Z")
        for n in range(1_500)
    ]

    async def send() -> int:
        async with IngestClient(api.url, max_batch_events=100) as client:
            parts = [events[start : start + 100] for start in range(0, 1_500, 100)]
            await asyncio.gather(*(client.send(account.key, part) for part in parts))
            return client.counts.retries

    assert asyncio.run(send()) > 0
    assert sorted(row.event_id for row in spooled(settings.spool_dir)) == sorted(e.event_id for e in events)


def test_workers_share_the_limits_of_a_key(new_api: Callable[..., Api], account: Account) -> None:
    api = new_api(workers=2, APEX_API_KEY_EVENTS_PER_SECOND="100", APEX_API_KEY_BURST_EVENTS="200")
    batch = [event(event_id=f"e-{number}") for number in range(101)]
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        # Larger than a worker's whole share of 100: served by a full bucket, then it takes a while.
        assert http.post("/api/usage/batch", json=batch).status_code == 200
        refused = http.post("/api/usage/batch", json=batch)
        assert (refused.status_code, refused.headers["ratelimit-limit"]) == (429, "100")
        assert refused.headers["ratelimit-policy"] == "50;w=1;burst=100"


def test_a_spool_that_fills_up_asks_clients_to_slow_down_and_serves_them_again(
    new_api: Callable[..., Api], account: Account, settings: Settings
) -> None:
    api = new_api(APEX_SPOOL_SOFT_LIMIT_BYTES="20000", APEX_SPOOL_SEGMENT_MAX_BYTES="5000")
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        assert http.post("/api/usage/track", json=event(event_id="first")).status_code == 200

        def is_refused() -> bool:
            answer = http.post("/api/usage/batch", json=[event(event_id=None)] * 100)
            if answer.status_code == 200:
                return False
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "spool_busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["ratelimit-reset"] == answer.headers["retry-after"]
            return True

        until(is_refused)
        # There is still room: it is ready, and what it has already is told so.
        assert http.get("/ready").status_code == 200
        again = http.post("/api/usage/track", json=event(event_id="first"))
        assert (again.status_code, again.json()["duplicate"]) == (200, True)
        assert 'apex_ingest_throttled_total{cause="spool"}' in http.get("/metrics").text
        for path in list_segments(settings.spool_dir, SEALED):
            path.unlink()
        until(lambda: http.post("/api/usage/track", json=event(event_id="later")).status_code == 200)
