"""The supervisor with real child processes: readiness, restarts, order, what a killed supervisor leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from apex_pipelines.platform.supervisor import (
    Process,
    ProcessRecord,
    StackError,
    Supervisor,
    read_records,
    write_record,
)

SLEEPER = "import time; time.sleep(600)"


def child(tmp_path: Path, name: str, code: str = SLEEPER, **options: object) -> Process:
    return Process(
        name, [sys.executable, "-c", code], dict(os.environ), tmp_path / "run", tmp_path / f"{name}.log",
        stop_seconds=3, ready_seconds=10, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def pid_of(tmp_path: Path, name: str) -> int | None:
    return next((r.pid for r in read_records(tmp_path / "run") if r.name == name and r.process()), None)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.05)


def test_a_killed_process_comes_back_and_all_end_with_the_supervisor(tmp_path: Path) -> None:
    with Supervisor([child(tmp_path, "a"), child(tmp_path, "b")], tmp_path / "run"):
        first = pid_of(tmp_path, "a")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        eventually(lambda: pid_of(tmp_path, "a") not in (None, first))
        record = next(r for r in read_records(tmp_path / "run") if r.name == "a")
        assert record.restarts == 1
        pids = [pid_of(tmp_path, name) for name in ("a", "b")]
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)
    assert read_records(tmp_path / "run") == []


def test_a_process_that_ends_while_starting_is_reported_with_its_last_words(tmp_path: Path) -> None:
    talker = child(tmp_path, "bad", "import sys; sys.exit('no such table: moon')", ready=lambda: False)
    with pytest.raises(StackError, match="no such table: moon"), Supervisor([talker], tmp_path / "run"):
        pass
    assert read_records(tmp_path / "run") == []


def test_what_started_before_a_failure_is_stopped(tmp_path: Path) -> None:
    good = child(tmp_path, "good")
    bad = child(tmp_path, "bad", "raise SystemExit(3)", ready=lambda: False)
    with pytest.raises(StackError, match="exit code 3"), Supervisor([good, bad], tmp_path / "run"):
        pass
    assert good._child is None


def test_a_taken_port_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = child(tmp_path, "api", listens=("127.0.0.1", port, "APEX_API_PORT"))
        with pytest.raises(StackError, match=f"port {port} .* set APEX_API_PORT"):
            server.start()


def test_a_second_supervisor_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    code = f"""
import time, psutil
from pathlib import Path
from apex_pipelines.platform.supervisor import Supervisor
with Supervisor([], Path({str(tmp_path / "run")!r})):
    print('up', flush=True); time.sleep(600)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        with (
            pytest.raises(StackError, match=f"already runs on this data folder \\(process {other.pid}\\)"),
            Supervisor([], tmp_path / "run"),
        ):
            pass
    finally:
        other.kill()
        other.wait()


def test_what_a_killed_supervisor_left_running_is_ended_by_the_next_one(tmp_path: Path) -> None:
    # The orphan has a child of its own, as a server has workers: both must go, or the port stays taken.
    parent = f"""
import os, sys, time
from pathlib import Path
from apex_pipelines.platform.supervisor import Process, Supervisor
code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
p = Process('a', [sys.executable, '-c', code], dict(os.environ), Path({str(tmp_path / "run")!r}), Path({str(tmp_path / "a.log")!r}))
with Supervisor([p], Path({str(tmp_path / "run")!r})):
    print('up', flush=True); time.sleep(600)
"""  # noqa: E501
    other = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert b"up\n" in iter(other.stdout.readline, b"")
    orphan = pid_of(tmp_path, "a")
    assert orphan is not None
    eventually(lambda: len(psutil.Process(orphan).children()) == 1)
    worker = psutil.Process(orphan).children()[0]
    other.kill()
    other.wait()
    os.kill(orphan, signal.SIGKILL)  # the leader dies too; its worker is nobody's child now
    with Supervisor([child(tmp_path, "a")], tmp_path / "run"):
        eventually(lambda: not worker.is_running())
        assert pid_of(tmp_path, "a") != orphan


def test_a_record_whose_pid_belongs_to_a_stranger_harms_nobody(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    try:
        born = psutil.Process(stranger.pid).create_time()
        write_record(tmp_path / "run", ProcessRecord("a", stranger.pid, born - 3600))
        write_record(tmp_path / "run", ProcessRecord("gone", stranger.pid, born - 3600))
        with Supervisor([child(tmp_path, "a")], tmp_path / "run"):
            assert stranger.poll() is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_part_that_fails_in_an_unexpected_way_does_not_end_the_watch(tmp_path: Path) -> None:
    class Broken:
        name = "broken"

        def start(self) -> None: ...

        def healthy(self) -> bool:
            raise RuntimeError("cannot tell")

        def stop(self) -> None: ...

    with Supervisor([Broken(), child(tmp_path, "a")], tmp_path / "run"):
        first = pid_of(tmp_path, "a")
        assert first is not None
        time.sleep(0.8)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: pid_of(tmp_path, "a") not in (None, first))
