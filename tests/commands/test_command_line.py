"""The `apex` command as a person meets it: errors in one line, tables that keep what they are given."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from apex_pipelines.billing.store import sync_plans
from apex_pipelines.commands import console
from apex_pipelines.platform.supervisor import StackError
from apex_pipelines.settings import Settings, child_environment
from apex_pipelines.stack import Part, components

APEX = str(Path(sys.executable).with_name("apex"))


def apex(settings: Settings, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = child_environment(settings, **extra)
    return subprocess.run([APEX, *arguments], env=env, capture_output=True, text=True, timeout=60)


def test_help_names_every_command_and_each_has_an_example(settings: Settings) -> None:
    listed = apex(settings, "--help").stdout
    for command in ("up", "status", "doctor", "demo", "import"):
        assert command in listed
        assert "Example" in apex(settings, command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "extra", "said"),
    [
        (["import", "nowhere.log"], {}, "nowhere.log"),
        (["status"], {}, "Start it with `apex up`"),
        (["customer", "list"], {}, "start the platform with `apex up`"),
        (["demo"], {"APEX_CLOCK": "yesterday"}, "APEX_CLOCK='yesterday'"),
        (["status"], {"APEX_LOG_LEVEL": "verbose"}, "APEX_LOG_LEVEL"),
        (["status"], {"APEX_API_PORT": "eighty"}, "APEX_API_PORT"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_1(
    settings: Settings, arguments: list[str], extra: dict[str, str], said: str
) -> None:
    done = apex(settings, *arguments, **extra)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_is_named_with_its_setting_and_nothing_keeps_running(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = apex(settings, "up", "--no-dagster", APEX_WAREHOUSE_PORT=port)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "APEX_WAREHOUSE_PORT" in done.stderr
    assert apex(settings, "status").returncode == 1


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(StackError, match="only 1 MB are free"):
        components(Settings(home=tmp_path / "apex"), {Part.STORES})


def test_a_customer_is_created_listed_and_its_key_is_never_shown_again(
    settings: Settings, engine: sa.Engine
) -> None:
    name = "[acme] Games [/b]"
    with engine.begin() as connection:
        sync_plans(connection)
    created = apex(settings, "customer", "create", name, "dev@acme.example", "--plan", "indie")
    assert created.returncode == 0, created.stderr
    key = next(word for word in created.stdout.split() if word.startswith("apx_live_"))
    assert name in apex(settings, "customer", "list").stdout
    listed = json.loads(apex(settings, "keys", "list", "--json").stdout)
    assert listed[0]["prefix"] == key[:12]
    assert key not in json.dumps(listed)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("select count(*) from api_keys where key_hash is not null")) == 1


def test_the_operators_key_belongs_to_no_customer(settings: Settings, engine: sa.Engine) -> None:
    issued = apex(settings, "keys", "issue", "--operator", "--label", "console")
    assert issued.returncode == 0, issued.stderr
    (listed,) = json.loads(apex(settings, "keys", "list", "--json").stdout)
    assert (listed["customer_id"], listed["scopes"], listed["label"]) == (None, ["operator"], "console")
    for wrong in ((), ("cus_x", "--operator")):
        assert apex(settings, "keys", "issue", *wrong).returncode == 2


def test_tables_keep_customers_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.show([{"name": "a [/b] [red]c"}], ["name"], as_json=False)
    assert "a [/b] [red]c" in capsys.readouterr().out
