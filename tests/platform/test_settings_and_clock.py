"""Settings, the clock and masking in logs."""

from __future__ import annotations

import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from apex_pipelines.customers.keys import KEY_PREFIX
from apex_pipelines.platform.clock import BadClock, ManualClock, SystemClock, clock_from_setting
from apex_pipelines.platform.logging import mask_secrets
from apex_pipelines.platform.supervisor import StackError
from apex_pipelines.settings import Settings, child_environment, settings_problems
from apex_pipelines.stack import Part, components


def test_a_child_process_sees_what_was_set_in_code(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "x", api_port=1234, clock="2026-01-01T00:00:00Z")
    env = child_environment(settings, EXTRA="1")
    assert env["APEX_HOME"] == str(tmp_path / "x")
    assert env["APEX_API_PORT"] == "1234"
    assert env["APEX_CLOCK"] == "2026-01-01T00:00:00Z"
    assert env["EXTRA"] == "1"
    assert "APEX_DATABASE_URL" not in env


def test_a_frozen_clock_stands_still_until_moved() -> None:
    clock = clock_from_setting("1998-07-01")
    assert isinstance(clock, ManualClock)
    assert clock.now() == datetime(1998, 7, 1, tzinfo=UTC)
    clock.advance(timedelta(days=1))
    assert clock.now() == datetime(1998, 7, 2, tzinfo=UTC)


def test_a_clock_needs_a_zone_and_a_readable_instant() -> None:
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="APEX_CLOCK='yesterday'"):
        clock_from_setting("yesterday")
    assert isinstance(clock_from_setting("system"), SystemClock)


@pytest.mark.parametrize(
    "text",
    [
        "key apx_live_abcdSECRETSECRET used",
        "GET /apx_live_w-_dSECRET-SECRET_x",
        "eyJhbGciOiJIUzI1NiJ9.SECRET.SECRET-_SECRET",
        "whsec_ab+/SECRET/SECRET+SECRET=",
        "Authorization: Bearer SECRETtoken",
        "http://default:SECRET@127.0.0.1:8123",
        "sk_test_abcdSECRETSECRET",
    ],
)
def test_secrets_do_not_reach_the_log(text: str) -> None:
    assert "SECRET" not in mask_secrets(text)


def test_no_issued_key_reaches_the_log() -> None:
    for _ in range(500):  # a key's letters are random, and `-` and `_` are among them
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        shown = mask_secrets(f"GET /{key} refused")
        assert shown == f"GET /{key[: len(KEY_PREFIX) + 4]}*** refused"


def test_an_empty_line_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEX_CLICKHOUSE_PASSWORD", "")
    monkeypatch.setenv("APEX_DATABASE_URL", "")
    settings = Settings()
    assert settings.clickhouse_password is None
    assert settings.database_url is None


def test_a_data_folder_that_the_stores_cannot_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="has ' ' in its path"):
        components(Settings(home=tmp_path / "my apex"), {Part.STORES})


def test_a_wrong_clock_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadClock, match="APEX_CLOCK='yesterday'"):
        components(Settings(home=tmp_path / "apex", clock="yesterday"), {Part.STORES})
    assert not (tmp_path / "apex").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_port", "70000"),
        ("api_workers", "0"),
        ("api_max_body_bytes", "0"),
        ("api_max_batch_events", "0"),
        ("api_idle_seconds", "inf"),
        ("api_key_cache_seconds", "-1"),
        ("api_key_outage_hours", "nan"),
        ("api_key_file_seconds", "0"),
        ("api_key_events_per_second", "inf"),
        ("api_reads_per_window", "0"),
        ("api_reads_window_seconds", "0"),
        ("spool_segment_max_bytes", "0"),
        ("spool_segment_max_age_ms", "0"),
        ("spool_hard_limit_bytes", "-5"),
        ("loader_max_rows_per_insert", "0"),
        ("loader_poll_ms", "0"),
        ("event_max_late_days", "-1"),
    ],
)
def test_a_setting_that_nothing_can_work_with_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"APEX_{name.upper()}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert settings_problems(refused.value).startswith(f"APEX_{name.upper()}={value}: ")


def test_limits_that_contradict_each_other_are_told_with_the_way_out() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(spool_soft_limit_bytes=2_000, spool_hard_limit_bytes=1_000)
    assert settings_problems(refused.value) == (
        "APEX_SPOOL_SOFT_LIMIT_BYTES=2000 is above APEX_SPOOL_HARD_LIMIT_BYTES=1000, so clients would be "
        "refused before they are asked to slow down; lower the one or raise the other"
    )
    assert Settings(spool_hard_limit_bytes=1_000).spool_hard_limit_bytes == 1_000
    with pytest.raises(ValidationError, match="APEX_API_MAX_UPLOADING_BYTES=10 has no room for one body"):
        Settings(api_max_uploading_bytes=10)


@pytest.mark.parametrize("module", ["ingest_api", "ingest_api.loader"])
def test_a_wrong_setting_is_told_in_one_line(module: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", module], env=child_environment(settings, APEX_API_READS_PER_WINDOW="0"),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: settings are wrong: APEX_API_READS_PER_WINDOW=0: ")
