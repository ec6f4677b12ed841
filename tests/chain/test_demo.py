"""The demo as a stranger runs it: exact totals, a repeat that changes nothing, SIGKILL on everything."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import date
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import psutil
import pytest

from apex_pipelines.demo import DemoError, DemoPlan, settled_plan
from apex_pipelines.platform.supervisor import read_records
from apex_pipelines.settings import Settings
from tests.chain.demo_home import DemoHome, child_running, eventually, outcome

CUSTOMERS, DAYS = 120, 100
RUN = "dagster job execute"


@dataclass(frozen=True)
class Undisturbed:
    """A demo that nothing happened to."""

    home: DemoHome
    result: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = DemoHome(tmp_path_factory.mktemp("undisturbed") / "apex", CUSTOMERS, DAYS)
    return Undisturbed(home, home.finish())


def mails_on_disk(folder: Path) -> Counter[str]:
    """How often each Message-ID stands in an outbox folder."""
    found = [message_from_bytes(path.read_bytes(), policy=policy.default) for path in folder.rglob("*.eml")]
    return Counter(str(mail["Message-ID"]) for mail in found)


def test_every_event_sent_counts_once_and_every_mail_is_on_disk_once(undisturbed: Undisturbed) -> None:
    home, first = undisturbed.home, undisturbed.result
    simulated = first["simulated"]
    assert simulated["generated"] > 10_000
    assert simulated["sent"] == simulated["generated"] + sum(simulated["repeats"].values())
    assert sum(simulated["repeats"].values()) > 0
    assert simulated["acknowledged"] == simulated["sent"]
    assert first["stored_distinct"] == first["counted"] == simulated["generated"]
    assert first["totals"] == simulated["expected_quantity"]
    assert first["differences"] == []
    assert sum(first["mails"].values()) > 0
    on_disk = mails_on_disk(home.settings.outbox_dir)
    assert set(on_disk.values()) == {1}
    assert len(on_disk) >= sum(first["mails"].values())
    assert read_records(home.settings.run_dir) == []  # all that was started has been stopped


def forget_what_was_confirmed(home: DemoHome) -> None:
    """The simulator's notes are lost, so that all telemetry goes out once more."""
    for state in (home.settings.home_path / "simulator").glob("*.sqlite*"):
        state.unlink()


@pytest.mark.slow  # and the test of the kills shows the same after accidents
def test_a_second_run_that_sends_everything_again_changes_nothing(undisturbed: Undisturbed) -> None:
    home, first = undisturbed.home, undisturbed.result
    on_disk = mails_on_disk(home.settings.outbox_dir)
    forget_what_was_confirmed(home)
    second = home.finish()
    assert second["simulated"]["sent_by_this_run"] == first["simulated"]["sent"]
    assert outcome(second) == outcome(first)
    assert mails_on_disk(home.settings.outbox_dir) == on_disk


@pytest.mark.faults
@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.timeout(900)
def test_each_process_killed_once_and_everything_sent_again(
    undisturbed: Undisturbed, tmp_path: Path, is_long: bool
) -> None:
    home = DemoHome(tmp_path / "apex", CUSTOMERS, DAYS)

    # While events are sent: the supervisor brings each back, the sender retries with the same event ids.
    run = home.start()
    run.wait_for_stage("send")
    for victim in ("loader", "api", "warehouse"):
        home.wait_until_replaced(victim, home.kill(victim))
    # While the graph runs: first the run itself, between two of its steps.
    run.wait_for_stage("chain")
    dagster_run = eventually(lambda: child_running(run.process.pid, RUN))
    eventually(lambda: child_running(dagster_run.pid, "dbt"))
    dagster_run.kill()
    assert run.process.wait(60) == 1
    assert "the run of whole_chain failed" in "".join(run.output)

    if is_long:
        # Again, and PostgreSQL dies under the run; it comes back or the run fails: either is allowed.
        run = home.start()
        run.wait_for_stage("chain")
        eventually(lambda: child_running(run.process.pid, "dbt"))
        home.kill("postgres")
        run.process.wait(180)

    # Again, and the whole demo dies with everything that it started.
    run = home.start()
    run.wait_for_stage("chain")
    eventually(lambda: child_running(run.process.pid, "dbt"))
    run.process.kill()
    run.process.wait()

    forget_what_was_confirmed(home)
    result = home.finish()
    assert result["simulated"]["sent_by_this_run"] == undisturbed.result["simulated"]["sent"]
    assert outcome(result) == outcome(undisturbed.result)
    assert set(mails_on_disk(home.settings.outbox_dir).values()) == {1}
    assert sum(mails_on_disk(home.settings.outbox_dir).values()) == sum(result["mails"].values())


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments(undisturbed: Undisturbed, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    home = DemoHome(tmp_path / "apex", CUSTOMERS, DAYS)
    for _ in range(3):
        run = home.start()
        began = time.monotonic()
        while run.process.poll() is None and time.monotonic() - began < 60:
            time.sleep(chance.uniform(0.5, 6))
            victim = chance.choice(["api", "loader", "warehouse", "postgres", "run", "demo"])
            try:
                if victim == "demo":
                    run.process.kill()
                elif victim == "run":
                    found = child_running(run.process.pid, RUN)
                    if found is not None:
                        found.kill()
                else:
                    home.kill(victim)
            except (StopIteration, psutil.Error, ProcessLookupError):
                continue  # not started yet, or gone already
        run.process.kill()
        run.process.wait()
    result = home.finish()
    assert outcome(result) == outcome(undisturbed.result)
    assert set(mails_on_disk(home.settings.outbox_dir).values()) == {1}


def test_a_demo_of_another_size_is_refused_on_the_same_folder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    plan = DemoPlan(as_of=date(2026, 6, 1), customers=60, days=90, seed=42)
    assert settled_plan(settings, plan, named=["customers"]) == plan
    for other in (replace(plan, customers=61), replace(plan, as_of=date(2026, 7, 1))):
        with pytest.raises(DemoError, match="holds a demo of 60 customers over 90 days until 2026-06-01"):
            settled_plan(settings, other, named=["customers", "as_of"])
    # Naming no sizes means the demo that the folder holds, whatever today's date is.
    assert settled_plan(settings, replace(plan, as_of=date(2026, 7, 1)), named=[]) == plan


def test_a_missing_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    home = DemoHome(tmp_path / "apex", customers=1, days=1)
    run = home.start("--data", str(tmp_path / "nowhere.log"))
    assert run.process.wait(60) == 1
    assert "there is no file" in "".join(run.output)
    assert not home.settings.run_dir.exists()
