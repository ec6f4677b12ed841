"""SIGKILL on each process at work, then the same command again: same totals, no mail twice."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.chain.demo_home import DemoHome, child_running, eventually, outcome
from tests.chain.test_demo import mails_on_disk

CUSTOMERS, DAYS = 120, 100
RUN = "dagster job execute"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome of a demo that nothing happened to."""
    home = DemoHome(tmp_path_factory.mktemp("undisturbed") / "apex", CUSTOMERS, DAYS)
    return outcome(home.finish())


def test_each_process_killed_once_and_the_demo_run_again(
    undisturbed: dict[str, object], tmp_path: Path
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

    result = home.finish()
    assert outcome(result) == undisturbed
    assert set(mails_on_disk(home.settings.outbox_dir).values()) == {1}
    assert sum(mails_on_disk(home.settings.outbox_dir).values()) == sum(result["mails"].values())


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_moments(undisturbed: dict[str, object], tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    home = DemoHome(tmp_path / "apex", CUSTOMERS, DAYS)
    for _ in range(4):
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
    assert outcome(result) == undisturbed
    assert set(mails_on_disk(home.settings.outbox_dir).values()) == {1}
