"""The demo as a stranger runs it: exact totals, and a second run that changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from apex_pipelines.demo import DemoError, DemoPlan, settled_plan
from apex_pipelines.platform.supervisor import read_records
from apex_pipelines.settings import Settings
from tests.chain.demo_home import DemoHome, outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> DemoHome:
    return DemoHome(tmp_path_factory.mktemp("demo") / "apex", customers=60, days=90)


def mails_on_disk(folder: Path) -> Counter[str]:
    """Message-IDs of the mails in an outbox folder."""
    found = [message_from_bytes(path.read_bytes(), policy=policy.default) for path in folder.rglob("*.eml")]
    return Counter(str(mail["Message-ID"]) for mail in found)


def test_every_event_sent_counts_once_and_a_second_run_changes_nothing(home: DemoHome) -> None:
    first = home.finish()
    simulated = first["simulated"]
    assert simulated["generated"] > 10_000
    assert simulated["sent"] == simulated["generated"] + sum(simulated["repeats"].values())
    assert sum(simulated["repeats"].values()) > 0
    assert simulated["acknowledged"] == simulated["sent"]
    assert first["stored_distinct"] == first["counted"] == simulated["generated"]
    assert first["totals"] == simulated["expected_quantity"]
    assert first["differences"] == []
    assert read_records(home.settings.run_dir) == []  # all that was started has been stopped
    assert sum(first["mails"].values()) > 0
    on_disk = mails_on_disk(home.settings.outbox_dir)
    assert set(on_disk.values()) == {1}
    assert len(on_disk) == sum(first["mails"].values())

    second = home.finish()
    assert outcome(second) == outcome(first)
    assert second["simulated"]["sent_by_this_run"] == 0
    assert second["stored_rows"] == first["stored_rows"]
    assert mails_on_disk(home.settings.outbox_dir) == on_disk

    # Lost notes: the same telemetry is sent once more, is stored or refused, and still counts once.
    for state in (home.settings.home_path / "simulator").glob("*.sqlite*"):
        state.unlink()
    third = home.finish()
    assert third["simulated"]["sent_by_this_run"] == simulated["sent"]
    assert outcome(third) == outcome(first)


def test_a_demo_of_another_size_is_refused_on_the_same_folder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    plan = DemoPlan(as_of=date(2026, 6, 1), customers=60, days=90, seed=42)
    assert settled_plan(settings, plan, explicit=True) == plan
    other = replace(plan, customers=61)
    with pytest.raises(DemoError, match="holds a demo of 60 customers over 90 days"):
        settled_plan(settings, other, explicit=True)
    # Naming no sizes means the demo that the folder holds, whatever today's date is.
    assert settled_plan(settings, replace(plan, as_of=date(2026, 7, 1)), explicit=False) == plan


def test_a_missing_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    home = DemoHome(tmp_path / "apex", customers=1, days=1)
    run = home.start("--data", str(tmp_path / "nowhere.log"))
    assert run.process.wait(30) == 1
    assert "there is no file" in "".join(run.output)
    assert not home.settings.run_dir.exists()
