"""Importing a file: each event once whatever happens on the way, and every failure with a way out."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from apex_pipelines.importing.engine import ImportProgress, ImportReport, run_import
from apex_pipelines.importing.errors import (
    ImportFailed,
    ImportInterrupted,
    MappingProblem,
    UnreadableFile,
)
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.platform.ingest_client import RetryPolicy
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import PROJECT_ROOT
from tests.importing.fault_server import Fault, FaultServer

QUICK = RetryPolicy(first_pause=0.01, longest_pause=0.05, give_up_after=1.0, answer_within=5)
PATIENT = RetryPolicy(first_pause=0.01, longest_pause=0.05, give_up_after=30, answer_within=5)
ROWS = [
    (f"c{number % 40:02}", f"199701{number % 28 + 1:02}", number % 5, f"{number}.25") for number in range(400)
]


def cdnow_text(rows: list[tuple[str, str, int, str]]) -> str:
    lines = [" customer_id  date number_of_cds  dollar_value"]
    lines += [f" {customer} {date}  {discs}   {dollars}" for customer, date, discs, dollars in rows]
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "purchases.txt"
    path.write_text(cdnow_text(ROWS))
    return path


def totals(server: FaultServer) -> Counter[str]:
    sums: Counter[str] = Counter()
    for event in server.events.values():
        sums[event["metric_type"]] += round(float(event["quantity"]) * 100)
    return sums


EXPECTED = Counter(
    impressions=sum(discs for _, _, discs, _ in ROWS) * 100,
    mediated_revenue=sum(round(float(dollars) * 100) for *_, dollars in ROWS),
)


def bring_in(
    settings: Settings, server: FaultServer, path: Path, clock: ManualClock, retry: RetryPolicy = QUICK
) -> ImportReport:
    settings.api_port = server.port
    return run_import(settings, path, historical=True, clock=clock, retry=retry, concurrency=4)


def test_the_story_of_a_file(settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path) -> None:
    steps: list[ImportProgress] = []
    with FaultServer() as server:
        settings.api_port = server.port
        report = run_import(settings, file, historical=True, clock=clock, on_progress=steps.append)
    assert (report.mapping, report.lines, report.records, report.bad_lines) == ("cdnow", 401, 400, 0)
    assert (report.customers, report.events, report.accepted) == (40, 800, 800)
    assert (report.duplicates, report.rejected, report.rejected_file) == (0, 0, None)
    assert report.quantity_by_metric["impressions"] == EXPECTED["impressions"] // 100
    assert report.quantity_by_metric["mediated_revenue"] == EXPECTED["mediated_revenue"] * 10_000
    assert totals(server) == EXPECTED
    assert len(server.keys) == 40
    assert [steps[0].phase, steps[-1].phase] == ["reading", "sending"]
    assert (steps[-1].done, steps[-1].total) == (800, 800)
    with engine.connect() as connection:
        customer = connection.execute(
            sa.text("select * from customers where source = 'import:cdnow' and external_ref = 'c00'")
        ).one()
        subscription = connection.execute(
            sa.text("select * from subscriptions where customer_id = :id"), {"id": customer.id}
        ).one()
        keys = connection.execute(sa.text("select scopes, revoked_at from api_keys")).all()
    first = min(date for name, date, *_ in ROWS if name == "c00")
    assert customer.created_at.strftime("%Y%m%d") == subscription.started_at.strftime("%Y%m%d") == first
    assert (subscription.plan_type, subscription.status) == ("starter", "active")
    assert subscription.current_period_start <= clock.now() < subscription.current_period_end
    assert len(keys) == 40
    assert all(key.revoked_at is not None and key.scopes == ["ingest", "historical"] for key in keys)
    assert list((settings.home_path / "imports").iterdir()) == []


def test_the_file_sent_twice_longer_and_gzipped_counts_once(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    with FaultServer() as server:
        bring_in(settings, server, file, clock)
        again = bring_in(settings, server, file, clock)
        assert (again.accepted, again.duplicates) == (0, 800)
        longer = file.with_name("longer.txt.gz")
        longer.write_bytes(gzip.compress(cdnow_text([*ROWS, ROWS[0]]).encode()))
        grown = bring_in(settings, server, longer, clock)
    assert (grown.accepted, grown.duplicates) == (2, 800)
    assert len(server.events) == 802
    with engine.connect() as connection:
        assert connection.scalar(sa.text("select count(*) from customers")) == 40
        assert connection.scalar(sa.text("select count(*) from subscriptions")) == 40


def test_faults_of_the_network_change_no_total(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    cycle = [Fault.DROP_AFTER, Fault.NONE, Fault.BUSY, Fault.HALF_ANSWER, Fault.ERROR, Fault.NONE]
    with FaultServer(fault=lambda number: cycle[number % 6], retry_after="0.01") as server:
        report = bring_in(settings, server, file, clock, PATIENT)
    assert totals(server) == EXPECTED
    assert report.accepted + report.duplicates == 800
    assert report.retries > 0


def test_killed_half_way_and_run_again(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    with FaultServer(delay_seconds=0.05) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.importing.import_process", str(file), str(server.port)],
            env=child_environment(settings),
            cwd=PROJECT_ROOT,
        )
        deadline = time.monotonic() + 30
        while len(server.arrivals) < 300 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        before = len(server.arrivals)
        assert 300 <= before < 800
        (state,) = (settings.home_path / "imports").glob("*.sqlite")
        assert state.stat().st_mode & 0o077 == 0
        server.delay_seconds = 0
        report = bring_in(settings, server, file, clock)
    assert report.resumed
    assert totals(server) == EXPECTED
    assert len(server.events) == 800
    # Only what was under way (two customers' batches of 20) may have come twice.
    assert len(server.arrivals) - 800 <= 2 * 20
    with engine.connect() as connection:
        assert connection.scalar(sa.text("select count(*) from api_keys where revoked_at is null")) == 0


def test_stopped_by_the_user_it_keeps_what_is_confirmed_and_ends_its_keys(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    def stop_half_way(progress: ImportProgress) -> None:
        if progress.phase == "sending" and progress.done >= 400:
            os.kill(os.getpid(), signal.SIGINT)

    with FaultServer(delay_seconds=0.05) as server:
        settings.api_port = server.port
        with pytest.raises(
            ImportInterrupted, match=r"stopped on request.*events are confirmed.*run the same"
        ):
            run_import(settings, file, historical=True, clock=clock, on_progress=stop_half_way, concurrency=2)
        with engine.connect() as connection:
            assert connection.scalar(sa.text("select count(*) from api_keys where revoked_at is null")) == 0
        report = bring_in(settings, server, file, clock)
    assert report.resumed
    assert totals(server) == EXPECTED
    assert len(server.arrivals) - 800 <= 2 * 20


def test_an_api_that_is_gone_interrupts_and_resuming_finishes(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    dead = FaultServer(fault=lambda number: Fault.NONE if number <= 10 else Fault.DROP_BEFORE)
    with dead, pytest.raises(ImportInterrupted, match=r"did not take a batch.*of 800 events are confirmed"):
        bring_in(settings, dead, file, clock)
    with FaultServer() as server:
        report = bring_in(settings, server, file, clock)
    assert len(dead.events) + len(server.events) == 800
    assert not dead.events.keys() & server.events.keys()
    assert report.events == report.accepted == 800


def test_starting_over_sends_everything_again(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    dead = FaultServer(fault=lambda number: Fault.NONE if number <= 10 else Fault.DROP_BEFORE)
    with dead, pytest.raises(ImportInterrupted):
        bring_in(settings, dead, file, clock)
    with FaultServer() as server:
        settings.api_port = server.port
        report = run_import(settings, file, historical=True, clock=clock, resume=False)
    assert not report.resumed
    assert len(server.events) == 800


def test_bad_lines_and_rejected_events_are_named_and_harm_no_others(
    settings: Settings, engine: sa.Engine, clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "broken.txt"
    good = cdnow_text(ROWS[:10]).encode()
    path.write_bytes(
        good
        + b" c1 19970101 x 1.0\r\n c1 19970101\r\n\r\n c\xff 19970101 1 1.0\r\n"
        + b"x" * 1_100_000
        + b"\r\n"
        b" c1 19970101 1 3.5\r\n"
    )

    def reject(event: dict[str, str]) -> str | None:
        return "too_late" if event["quantity"] == "3.5" else None

    with FaultServer(reject=reject) as server:
        report = bring_in(settings, server, path, clock)
    assert (report.lines, report.records, report.bad_lines) == (17, 11, 4)
    assert (report.events, report.accepted, report.rejected) == (22, 21, 1)
    assert report.rejected_file is not None
    assert report.rejected_file.stat().st_mode & 0o077 == 0
    named = [json.loads(line) for line in report.rejected_file.read_text().splitlines()]
    assert [(item["line"], item["reason"].split(":")[0]) for item in named] == [
        (12, "number_of_cds"),
        (13, "2 values where the header has 4"),
        (15, "not UTF-8 at byte 2"),
        (16, "longer than 1,048,576 bytes"),
        (17, "too_late"),
    ]


def test_two_imports_of_one_file_at_once_are_refused(
    settings: Settings, engine: sa.Engine, clock: ManualClock, file: Path
) -> None:
    failures: list[str] = []

    def import_it_too(_progress: ImportProgress) -> None:
        if not failures:
            with pytest.raises(ImportFailed) as caught:
                run_import(settings, file, clock=clock)
            failures.append(str(caught.value))

    with FaultServer() as server:
        settings.api_port = server.port
        run_import(settings, file, clock=clock, on_progress=import_it_too)
    assert "by another process" in failures[0]


def test_files_that_can_not_be_imported_say_why(
    settings: Settings, clock: ManualClock, tmp_path: Path, file: Path
) -> None:
    def fails(path: Path, error: type[ImportFailed], message: str, mapping: str | None = None) -> None:
        with pytest.raises(error, match=message):
            run_import(settings, path, mapping, clock=clock)

    fails(tmp_path / "none.csv", UnreadableFile, "there is no file .*none.csv")
    fails(tmp_path, UnreadableFile, "is no file")
    (tmp_path / "empty").write_text("\n \n")
    fails(tmp_path / "empty", UnreadableFile, "is empty")
    (tmp_path / "junk").write_bytes(bytes(range(256)) * 10)
    fails(tmp_path / "junk", UnreadableFile, "no text in UTF-8")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(cdnow_text(ROWS).encode())[:-900])
    fails(tmp_path / "broken.gz", UnreadableFile, "can't be read")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    fails(tmp_path / "other.csv", MappingProblem, "none of the built-in mappings")
    fails(tmp_path / "other.csv", MappingProblem, "reads customer_id, .* it has a,b", "cdnow")
    fails(file, MappingProblem, "neither a built-in mapping", "no-such")


def test_a_database_that_is_down_is_named(settings: Settings, clock: ManualClock, file: Path) -> None:
    with pytest.raises(ImportFailed, match=r"PostgreSQL is not running.*apex up"):
        run_import(settings, file, clock=clock)
