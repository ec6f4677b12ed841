"""Clocks that are set forwards and back by hours while everything runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.keys import revoke_key
from apex_pipelines.metering.events import microseconds
from apex_pipelines.settings import Settings
from ingest_api.raw_events import _LOADING_TIME, Batch, RawEvents
from ingest_api.spool.segments import SEALED, begun_at_ms, list_segments
from tests.ingest.books import stored, wait_until_landed
from tests.ingest.conftest import Account, Api, LoaderProcess, Neighbour, event
from tests.ingest.insistent_clients import InsistentClients
from tests.ingest.loading import loading
from tests.ingest.spool_files import accepted, spool, spooled
from tests.ingest.waiting import until

HOURS = 3600
NewApi = Callable[..., Api]


class HostClock:
    """The clock of the processes that are started with its `launcher`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0)

    def launcher(self, module: str) -> tuple[str, ...]:
        return ("tests.ingest.moved_clock", str(self._file), module)

    def move(self, seconds: int) -> None:
        """Let it be wrong by so many seconds."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(str(seconds))
        temporary.replace(self._file)


@pytest.fixture
def host_clock(tmp_path: Path) -> HostClock:
    return HostClock(tmp_path / "clock")


def test_jumps_of_hours_harm_no_client_and_lose_nothing(
    host_clock: HostClock,
    warehouse: Client,
    new_api: NewApi,
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    neighbour_of: Callable[[Api], Neighbour],
    settings: Settings,
) -> None:
    api = new_api(workers=2, launcher=host_clock.launcher("ingest_api"), APEX_CLOCK="system")
    loader = new_loader(launcher=host_clock.launcher("ingest_api.loader"))
    load = InsistentClients(api.url, account)
    with load.running(), neighbour_of(api) as neighbour:
        for seconds in (6 * HOURS, 0, -6 * HOURS, 40 * 24 * HOURS, -40 * 24 * HOURS, 0):
            host_clock.move(seconds)
            known = len(load.usage.acknowledged)
            until(lambda known=known: len(load.usage.acknowledged) > known + 50)  # type: ignore[misc]
            time.sleep(0.5)
        # What is left unloaded by a loader that dies is looked up by the time in its name.
        loader.kill()
        host_clock.move(-6 * HOURS)
        until(lambda: len(list_segments(settings.spool_dir, SEALED)) > 1)
        loader.start()
        before = api.resident()
        host_clock.move(6 * HOURS)
        time.sleep(1)
        assert api.resident() - before < 16_000_000
        backlog = httpx.get(f"{api.url}/ready").json()["checks"]["spool"]["backlog_seconds"]
        assert backlog >= 0
    neighbour.assert_unharmed()
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(warehouse)
    sent = load.usage.sent | set(neighbour.acknowledged)
    assert load.usage.acknowledged | set(neighbour.acknowledged) <= set(counts) <= sent
    times = warehouse.query("select batch_id, loaded_at from raw.usage_events").result_rows
    begun = [begun_at_ms(batch_id) or 0 for batch_id, _ in times]
    assert max(begun) - min(begun) > 70 * 24 * HOURS * 1000  # the jumps did reach the processes


def test_limits_waits_and_sealing_go_by_a_clock_that_can_not_be_set(
    host_clock: HostClock,
    new_api: NewApi,
    new_account: Callable[..., Account],
    engine: sa.Engine,
    settings: Settings,
) -> None:
    api = new_api(
        launcher=host_clock.launcher("ingest_api"),
        APEX_CLOCK="system",
        APEX_API_KEY_EVENTS_PER_SECOND="10",
        APEX_API_KEY_BURST_EVENTS="20",
    )
    greedy, revoked = new_account("greedy"), new_account("revoked")
    batch = [event(event_id=None) for _ in range(20)]
    with httpx.Client(base_url=api.url) as http:
        for seconds in (6 * HOURS, -6 * HOURS):
            host_clock.move(seconds)
            assert http.post("/api/usage/batch", json=batch, headers=greedy.bearer).status_code == 200
            host_clock.move(-seconds)
            refused = http.post("/api/usage/batch", json=batch, headers=greedy.bearer)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 2
            until(lambda: not list(settings.spool_dir.glob("*.open")), 5)
            time.sleep(int(refused.headers["retry-after"]))
        assert http.post("/api/usage/track", json=event(), headers=revoked.bearer).status_code == 200
        with engine.begin() as connection:
            revoke_key(connection, revoked.key_id, datetime.now(UTC))
        host_clock.move(-6 * HOURS)
        until(
            lambda: http.post("/api/usage/track", json=event(), headers=revoked.bearer).status_code == 401, 7
        )


def test_what_clients_say_of_time_is_judged_by_the_servers_clock(
    host_clock: HostClock, new_api: NewApi, account: Account, settings: Settings
) -> None:
    """A server whose clock is behind refuses what is right, with the reason that tells it."""
    api = new_api(launcher=host_clock.launcher("ingest_api"), APEX_CLOCK="system")
    body = event(timestamp=datetime.now(UTC).isoformat())
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        host_clock.move(-6 * HOURS)
        behind = http.post("/api/usage/track", json=body)
        assert (behind.status_code, behind.json()["error"]["code"]) == (422, "too_early")
        host_clock.move(6 * HOURS)
        assert http.post("/api/usage/track", json=body).status_code == 200
        host_clock.move(0)
        assert http.post("/api/usage/track", json=body).json()["duplicate"] is True
    (row,) = spooled(settings.spool_dir)
    assert abs(row.event_time_ms / 1000 - time.time()) < 60


def test_the_time_of_loading_never_goes_back(warehouse: Client, settings: Settings) -> None:
    """Rows of a server whose clock was five hours ahead, and then set right, stay the oldest."""
    ahead = datetime.now(UTC) + timedelta(hours=5)
    warehouse.command(
        "insert into raw.usage_events (customer_id, event_id, batch_id, loaded_at) "
        f"values ('cus_1', 'ahead', 'b', '{ahead:%Y-%m-%d %H:%M:%S.%f}')"
    )
    with loading(settings):
        for name in ("first", "second"):
            spool(settings.spool_dir, [accepted(name), accepted(f"{name}-too")])
            wait_until_landed(settings.spool_dir)
    rows = warehouse.query("select event_id from raw.usage_events order by loaded_at, batch_row").result_rows
    assert [row[0] for row in rows] == ["ahead", "first", "first-too", "second", "second-too"]
    (times,) = warehouse.query(
        "select uniqExact(loaded_at), max(loaded_at) from raw.usage_events"
    ).result_rows
    assert times[0] == 3
    assert times[1].replace(tzinfo=UTC) - ahead < timedelta(seconds=1)


def loading_times(warehouse: Client) -> list[int]:
    """Microseconds since 1970, in the order of the rows' batches."""
    query = "select toUnixTimestamp64Micro(loaded_at) from raw.usage_events order by batch_id"
    return [row[0] for row in warehouse.query(query).result_rows]


def test_rows_ahead_of_the_servers_clock_wait_for_it(warehouse: Client, settings: Settings) -> None:
    """Otherwise a loader that is never idle would stay ahead of it for ever."""
    ahead = int((time.time() + 5 * HOURS) * 1_000_000)
    warehouse.command(
        "insert into raw.usage_events (customer_id, event_id, batch_id, loaded_at) "
        f"select 'cus_1', 'ahead', '0', fromUnixTimestamp64Micro({ahead}, 'UTC')"
    )
    table = RawEvents(settings, "tests")
    for number in range(1, 4):
        table.insert([Batch(str(number), [0], [accepted(f"evt-{number}")])])
        time.sleep(0.1)
    table.disconnect()
    assert loading_times(warehouse) == [ahead + number for number in range(4)]


def test_a_machine_that_slept_asks_for_the_time_again(warehouse: Client, settings: Settings) -> None:
    """Its monotonic clock stands meanwhile."""
    table = RawEvents(settings, "tests", monotonic=lambda: 1_000.0)
    table.insert([Batch("0", [0], [accepted("before")])])
    time.sleep(0.5)
    awake = int(time.time() * 1_000_000)
    table.insert([Batch("1", [0], [accepted("after")])])
    table.disconnect()
    assert loading_times(warehouse)[1] >= awake


def test_the_newest_time_of_loading_is_told_by_the_parts(warehouse: Client) -> None:
    """It is asked each second, of a table that only grows."""
    warehouse.command(
        "insert into raw.usage_events (customer_id, event_id, batch_id, batch_row, loaded_at) "
        "select 'cus_1', toString(number), 'b', number, "
        "toDateTime64('2026-05-01', 6, 'UTC') + toIntervalMillisecond(number) "
        "from numbers(50_000)"
    )
    parts = "select count() from system.parts where database = 'raw' and table = 'usage_events' and active"
    asked = warehouse.query(_LOADING_TIME)
    newest = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(milliseconds=49_999)
    assert asked.result_rows[0][1] == microseconds(newest)
    assert int(asked.summary["read_rows"]) <= warehouse.query(parts).result_rows[0][0]
