"""Running a simulation against a real HTTP server: everything arrives, and the report's totals are exact."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from apex_pipelines.platform import catalogue
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.platform.ingest_client import RetryPolicy
from apex_pipelines.sandbox.simulator import Simulation, SimulationReport, run_simulation
from apex_pipelines.sandbox.simulator.population import SimulationError
from apex_pipelines.sandbox.simulator.runner import SimulationInterrupted
from apex_pipelines.sandbox.simulator.state import stored_simulation
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import PROJECT_ROOT
from tests.importing.fault_server import Fault, FaultServer
from tests.simulator.simulation_process import SMALL

QUICK = RetryPolicy(first_pause=0.01, longest_pause=0.05, give_up_after=1.0, answer_within=5)
PATIENT = RetryPolicy(first_pause=0.01, longest_pause=0.05, give_up_after=30, answer_within=5)


def run(
    settings: Settings,
    engine: sa.Engine,
    server: FaultServer,
    clock: ManualClock,
    simulation: Simulation = SMALL,
    retry: RetryPolicy = QUICK,
) -> SimulationReport:
    settings.api_port = server.port
    return run_simulation(settings, engine, simulation, clock, retry=retry)


def totals(server: FaultServer) -> dict[str, int]:
    """Storage units per metric, each event once, as the first that came."""
    sums: Counter[str] = Counter()
    for event in server.events.values():
        scale = catalogue.metrics()[event["metric_type"]].scale
        sums[event["metric_type"]] += int(Decimal(event["quantity"]).scaleb(scale))
    return dict(sums)


def accounts(engine: sa.Engine) -> list[tuple[object, ...]]:
    query = """
        select c.external_ref, s.status, s.plan_type, s.base_price_cents, s.cancelled_at,
               count(p.id), count(p.id) filter (where p.status = 'failed')
        from customers c join subscriptions s on s.customer_id = c.id
        left join payments p on p.customer_id = c.id
        group by 1, 2, 3, 4, 5 order by 1
    """
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def test_all_at_once_and_then_again(settings: Settings, engine: sa.Engine, clock: ManualClock) -> None:
    with FaultServer() as server:
        report = run(settings, engine, server, clock)
        assert report.sent == report.acknowledged == len(server.arrivals)
        assert report.generated == len(server.events) == report.sent - sum(report.repeats.values())
        assert report.expected_quantity == totals(server)
        assert report.rejected == 0
        again = run(settings, engine, server, clock)
        assert again.sent_by_this_run == 0
        assert len(server.arrivals) == report.sent
    assert (again.expected_quantity, again.sent) == (report.expected_quantity, report.sent)
    assert report.accounts.customers == 40
    with engine.connect() as connection:
        scopes: Sequence[list[str]] = (
            connection.execute(sa.text("select distinct scopes from api_keys")).scalars().all()
        )
        still_open = connection.scalar(sa.text("select count(*) from api_keys where revoked_at is null"))
    assert (scopes, still_open) == ([["ingest", "historical"]], 0)
    assert stored_simulation(settings.home_path, 7) == SMALL
    state = settings.home_path / "simulator" / "7.sqlite"
    assert state.stat().st_mode & 0o077 == 0


def test_killed_half_way_and_run_again(settings: Settings, engine: sa.Engine, clock: ManualClock) -> None:
    with FaultServer(delay_seconds=0.1) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulator.simulation_process", str(server.port)],
            env=child_environment(settings),
            cwd=PROJECT_ROOT,
        )
        deadline = time.monotonic() + 30
        while len(server.arrivals) < 4_000 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        server.delay_seconds = 0
        before = len(server.arrivals)
        report = run(settings, engine, server, clock)
        assert 4_000 <= before < report.sent
        assert 0 < report.sent_by_this_run < report.sent
    assert report.expected_quantity == totals(server)
    assert report.generated == len(server.events)
    # Only the two requests under way may have come twice.
    assert len(server.arrivals) - report.sent <= 2 * 1_000


def test_faults_change_no_total(settings: Settings, engine: sa.Engine, clock: ManualClock) -> None:
    cycle = [Fault.DROP_AFTER, Fault.NONE, Fault.BUSY, Fault.HALF_ANSWER, Fault.ERROR, Fault.NONE]
    with FaultServer(fault=lambda number: cycle[number % 6], retry_after="0.01") as server:
        report = run(settings, engine, server, clock, retry=PATIENT)
    assert report.expected_quantity == totals(server)
    assert report.generated == len(server.events)
    assert report.retries > 0


def test_an_api_that_is_gone_interrupts_and_going_on_finishes(
    settings: Settings, engine: sa.Engine, clock: ManualClock
) -> None:
    dead = FaultServer(fault=lambda number: Fault.NONE if number <= 20 else Fault.DROP_BEFORE)
    with dead, pytest.raises(SimulationInterrupted, match="run it again to go on"):
        run(settings, engine, dead, clock)
    with FaultServer() as server:
        report = run(settings, engine, server, clock)
    assert not dead.events.keys() & server.events.keys()
    assert report.generated == len(dead.events) + len(server.events)


def test_lived_day_by_day_it_ends_as_when_run_at_once(
    settings: Settings, engine: sa.Engine, clock: ManualClock
) -> None:
    short = Simulation(seed=7, customers=16, days=40, end_date=date(2026, 6, 1))
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    days_of_change = 0
    with FaultServer() as server:
        seen = accounts(engine)
        while True:
            report = run(settings, engine, server, clock, short)
            days_of_change += accounts(engine) != seen
            seen = accounts(engine)
            if clock.now().date() >= short.end_date:
                break
            clock.advance(timedelta(days=5))
        with engine.connect() as connection:
            kinds: Sequence[list[str]] = (
                connection.execute(sa.text("select distinct scopes from api_keys")).scalars().all()
            )
    assert ["ingest"] in kinds  # what is recent needs no key for late events
    assert days_of_change > 2
    assert report.expected_quantity == totals(server)
    with engine.begin() as connection:
        connection.execute(sa.text("truncate customers, subscriptions, payments, api_keys cascade"))
    fresh = settings.model_copy(update={"home": settings.home / "fresh"})
    fresh.__dict__.pop("home_path", None)
    with FaultServer() as at_once:
        assert run(fresh, engine, at_once, clock, short).expected_quantity == report.expected_quantity
    assert at_once.events == server.events
    assert accounts(engine) == seen


def test_another_simulation_under_the_same_seed_is_refused(
    settings: Settings, engine: sa.Engine, clock: ManualClock
) -> None:
    with FaultServer() as server:
        run(settings, engine, server, clock, Simulation(seed=3, customers=2, days=10))
        with pytest.raises(SimulationError, match=r"holds the simulation .*Take another seed"):
            run(settings, engine, server, clock, Simulation(seed=3, customers=2, days=11))
