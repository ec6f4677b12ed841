"""`apex demo`: the main job from an empty folder to a finished run, and the table that proves it.

Belongs here: the order of the demo's stages and what is compared at the end. Does not belong here: any of
the work itself; each stage calls the part of the platform that does it in earnest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.churn.rules import flag_probability
from apex_pipelines.importing.engine import ImportProgress, ImportReport, run_import
from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.platform.dbt import ensure_manifest
from apex_pipelines.platform.supervisor import (
    ProcessRecord,
    Supervisor,
    end_session,
    read_records,
    write_record,
)
from apex_pipelines.sandbox.closing import ClosingReport, close_months
from apex_pipelines.sandbox.simulator import Simulation, SimulationReport, run_simulation
from apex_pipelines.sandbox.simulator.runner import SimulationProgress
from apex_pipelines.settings import PROJECT_ROOT, Settings
from apex_pipelines.stack import Part, components, dagster_environment, prepare_dagster_home

CHAIN_JOB = "whole_chain"
# The daily chain's hour: what happened yesterday is complete, today's mails are due.
AS_OF_HOUR = time_of_day(8, tzinfo=UTC)
# Customers whose last month is closed at the offline Stripe; each is some hundred requests.
CLOSED_MONTHS = 6


class DemoError(RuntimeError):
    """The demo can't go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What a demo consists of. Kept in the data folder, so that running it again means the same demo.

    Attributes
    ----------
    as_of : date
        The day on which the chain runs, UTC; the simulated lives end the day before.
    """

    as_of: date
    customers: int
    days: int
    seed: int

    @property
    def now(self) -> datetime:
        return datetime.combine(self.as_of, AS_OF_HOUR)

    @property
    def simulation(self) -> Simulation:
        return Simulation(seed=self.seed, customers=self.customers, days=self.days, end_date=self.as_of)


@dataclass(slots=True)
class DemoResult:
    """What the demo did, for the table at its end; durations in seconds.

    Attributes
    ----------
    stored_rows, stored_distinct : int
        Rows of `raw.usage_events`, and different (customer, event id) among them, counted there.
    counted : int
        Events that `marts.usage_daily` counts.
    differences : list of str
        Totals per metric that differ from what the simulator sent; empty when all is right.
    """

    plan: DemoPlan
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    simulated: SimulationReport | None = None
    imported: list[ImportReport] = field(default_factory=list)
    stored_rows: int = 0
    stored_distinct: int = 0
    counted: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    segments: dict[str, int] = field(default_factory=dict)
    customers: int = 0
    model: dict[str, Any] | None = None
    scored: int = 0
    flagged: int = 0
    mails: dict[str, int] = field(default_factory=dict)
    closing: ClosingReport = field(default_factory=ClosingReport)

    @property
    def exact(self) -> bool:
        """Each event that is stored counts once, totals are what was sent, and Stripe says the same."""
        counted = self.stored_distinct == self.counted and not self.differences
        return counted and not self.closing.differences

    def as_dict(self) -> dict[str, Any]:
        """For programs: everything, JSON-ready but for dates."""
        return {**asdict(self), "exact": self.exact}


Announce = Callable[[str, str], None]


def settled_plan(settings: Settings, wanted: DemoPlan, *, named: Collection[str]) -> DemoPlan:
    """The plan that this data folder holds, else `wanted`, which is then kept.

    Parameters
    ----------
    named : collection of str
        Fields of the plan that the user named; these must agree with what the folder holds.

    Raises
    ------
    DemoError
        If the folder holds another demo than the one named.
    """
    path = settings.home_path / "demo.json"
    if path.exists():
        kept = json.loads(path.read_text())
        plan = DemoPlan(date.fromisoformat(kept.pop("as_of")), **kept)
        if any(getattr(plan, name) != getattr(wanted, name) for name in named):
            raise DemoError(
                f"{settings.home_path} holds a demo of {plan.customers} customers over {plan.days} days "
                f"until {plan.as_of} (seed {plan.seed}); remove that folder or set APEX_HOME to another"
            )
        return plan
    settings.home_path.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**asdict(wanted), "as_of": wanted.as_of.isoformat()}))
    temporary.replace(path)
    return wanted


def run_demo(settings: Settings, plan: DemoPlan, data: list[Path], announce: Announce) -> DemoResult:
    """Run every stage; safe to repeat, and to run again after any of its processes was killed.

    Parameters
    ----------
    data : list of Path
        Files to import beside the simulated customers.
    announce : callable
        Given a stage's name and a line about its progress, many times.

    Raises
    ------
    DemoError
        If the chain fails; the message names its log.
    """
    for path in data:
        if not path.is_file():
            raise DemoError(f"there is no file {path}; give one after --data (or DATA=)")
    settings = settings.model_copy(update={"clock": plan.now.isoformat()})
    clock = ManualClock(plan.now)
    result = DemoResult(plan)

    @contextmanager
    def stage(name: str) -> Iterator[Callable[[str], None]]:
        began = time.monotonic()
        announce(name, "")
        yield lambda line: announce(name, line)
        result.stages[name] = time.monotonic() - began

    with _memory_watch(result, settings.run_dir):
        with stage("start"):
            ensure_manifest(settings)
            supervisor = Supervisor(components(settings, {Part.STORES, Part.INGEST}), settings.run_dir)
            supervisor.__enter__()
        try:
            engine = postgres.create_engine(settings)
            if plan.customers:
                with stage("send") as say:
                    told = partial(_say_simulation, say)
                    result.simulated = run_simulation(settings, engine, plan.simulation, clock, told)
            for path in data:
                with stage(f"import {path.name}") as say:
                    shown = partial(_say_import, say)
                    report = run_import(settings, path, historical=True, clock=clock, on_progress=shown)
                    result.imported.append(report)
            with stage("land") as say:
                wait_until_landed(settings.spool_dir, 600, on_progress=lambda left: say(f"{left} files wait"))
            with stage("chain") as say:
                run_chain(settings, CHAIN_JOB, say)
            with stage("compare"):
                client = clickhouse.connect(settings, query_origin="demo")
                _read_outcome(result, settings, client, engine)
            with stage("close months") as say:
                result.closing = close_months(
                    settings, engine, client, plan.now, customers=CLOSED_MONTHS, say=say
                )
            client.close()
            engine.dispose()
        finally:
            with stage("stop"):
                supervisor.__exit__(None, None, None)
    return result


def _say_simulation(say: Callable[[str], None], progress: SimulationProgress) -> None:
    say(f"{progress.customers_done} of {progress.customers} customers, {progress.events_sent:,} events")


def _say_import(say: Callable[[str], None], progress: ImportProgress) -> None:
    say(f"{progress.phase} {progress.done:,} of {progress.total:,}")


def run_chain(settings: Settings, job: str, say: Callable[[str], None]) -> None:
    """Run one job of the graph in a process of its own, as the daemon does.

    Raises
    ------
    DemoError
        If the run fails; the message quotes its last error lines and names the log.
    """
    prepare_dagster_home(settings)
    log_path = settings.log_dir / f"{job}.log"
    command = [
        sys.executable,
        "-m",
        "dagster",
        "job",
        "execute",
        "-m",
        "apex_pipelines.definitions",
        "-j",
        job,
    ]
    with log_path.open("wb") as log:
        run = subprocess.Popen(
            command, env=dagster_environment(settings), stdout=log, stderr=log, cwd=PROJECT_ROOT,
            start_new_session=True,
        )  # fmt: skip
    # Recorded like the other processes: if this one is killed, the next start ends the run it left behind.
    write_record(settings.run_dir, ProcessRecord("chain", run.pid, psutil.Process(run.pid).create_time()))
    try:
        while run.poll() is None:
            time.sleep(0.5)
            say(_last_step(log_path))
    finally:
        end_session(run.pid, seconds=10)
        run.wait()
        (settings.run_dir / "chain.json").unlink(missing_ok=True)
    if run.returncode != 0:
        lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "ERROR" in line or "FAILURE" in line] or lines
        raise DemoError(f"the run of {job} failed: {' | '.join(told[-3:])[:1500]}\nwhole log: {log_path}")


def _last_step(log_path: Path) -> str:
    with log_path.open("rb") as file:
        file.seek(max(0, log_path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    started = [line for line in lines if "STEP_START" in line or "STEP_SUCCESS" in line]
    return started[-1].split(" - ")[-2] if started and started[-1].count(" - ") >= 2 else "starting"


def _read_outcome(result: DemoResult, settings: Settings, client: Client, engine: sa.Engine) -> None:
    def one(query: str) -> int:
        return int(client.query(query).result_rows[0][0])

    def counts(query: str) -> dict[str, int]:
        return {str(name): int(count) for name, count in client.query(query).result_rows}

    def totals(source: str) -> dict[str, int]:
        rows = client.query(
            "select metric_type, sum(quantity) from marts.usage_daily where customer_id in "
            "(select id from raw.customers where source = {source:String}) group by metric_type",
            parameters={"source": source},
        ).result_rows
        return {str(name): int(total) for name, total in rows}

    result.stored_rows = one("select count() from raw.usage_events")
    result.stored_distinct = one("select uniqExact(customer_id, event_id) from raw.usage_events")
    result.counted = one("select sum(event_count) from marts.usage_daily")
    result.customers = one("select count() from marts.customers")
    result.totals = counts(
        "select metric_type, sum(quantity) from marts.usage_daily group by metric_type order by metric_type"
    )
    if result.simulated is not None:
        if result.simulated.acknowledged != result.simulated.sent:
            result.differences.append(
                f"events: sent {result.simulated.sent:,}, acknowledged {result.simulated.acknowledged:,}"
            )
        found = totals("simulator")
        result.differences += [
            f"{metric}: sent {wanted:,}, counted {found.get(metric, 0):,}"
            for metric, wanted in result.simulated.expected_quantity.items()
            if found.get(metric, 0) != wanted
        ]
    for report in result.imported:
        if report.rejected:
            continue  # their quantities are not told apart; the import's own report names them
        # At least, since other files may have been imported with the same mapping.
        found = totals(f"import:{report.mapping}")
        result.differences += [
            f"{report.file.name}, {metric}: sent {wanted:,}, counted {found.get(metric, 0):,}"
            for metric, wanted in report.quantity_by_metric.items()
            if found.get(metric, 0) < wanted
        ]
    result.segments = counts(
        "select segment, count() from marts.segment_memberships where left_on is null "
        "group by segment order by 2 desc"
    )
    day = result.plan.as_of.isoformat()
    scores = f"from ml.churn_scores final where feature_date = '{day}'"
    result.scored = one(f"select count() {scores}")
    result.flagged = one(f"select count() {scores} and probability > {flag_probability()}")
    result.model = _champion(settings)
    with engine.connect() as connection:
        mails = connection.execute(
            sa.text("select email_type, count(*) as n from email_log group by email_type order by 2 desc, 1")
        )
        result.mails = {str(row.email_type): int(row.n) for row in mails}


def _champion(settings: Settings) -> dict[str, Any] | None:
    """The champion's version, algorithm and figures with their intervals; None when no model serves."""
    from ml import registry  # brings scikit-learn, which takes seconds to import: not before it is needed

    try:
        metadata = registry.load_champion(settings.model_dir).metadata
    except registry.ChampionMissing:
        return None
    return {"version": metadata.version, "algorithm": metadata.algorithm, "metrics": metadata.metrics}


@contextmanager
def _memory_watch(result: DemoResult, run_dir: Path) -> Iterator[None]:
    """Note the most memory that this process and all it started held at once (proportional set size)."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            total = 0
            for process in _own_processes(run_dir):
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, AttributeError):
                    continue
            result.peak_memory_bytes = max(result.peak_memory_bytes, total)

    thread = threading.Thread(target=watch, name="memory-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def _own_processes(run_dir: Path) -> set[psutil.Process]:
    roots = [psutil.Process(), *(record.process() for record in read_records(run_dir))]
    found = set()
    for root in roots:
        if root is not None:
            with suppress(psutil.NoSuchProcess):
                found |= {root, *root.children(recursive=True)}
    return found
