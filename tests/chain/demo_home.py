"""A data folder in which tests run `apex demo` as a person would, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from apex_pipelines.platform.supervisor import read_records
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import PROJECT_ROOT, free_port

AS_OF = "2026-06-01"


@dataclass
class DemoRun:
    """One run under way: its process and the stages that it has announced."""

    process: subprocess.Popen[str]
    stages: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    def follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output.append(line)
            if line.startswith("[") and "]" in line:
                self.stages.append(line.split("]", 1)[1].strip())

    def wait_for_stage(self, stage: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while stage not in self.stages:
            assert self.process.poll() is None, f"ended before {stage!r}: {''.join(self.output[-20:])}"
            assert time.monotonic() < deadline, f"stage {stage!r} was not reached in {seconds} s"
            time.sleep(0.02)


class DemoHome:
    """Runs `apex demo` again and again on one data folder, with ports of its own."""

    def __init__(self, folder: Path, customers: int, days: int, *, clock: str = "system") -> None:
        self.settings = Settings(
            home=folder,
            api_port=free_port(),
            warehouse_port=free_port(),
            dagster_port=free_port(),
            clock=clock,
        )
        self.arguments = ["--customers", str(customers), "--days", str(days), "--as-of", AS_OF]

    def start(self, *extra: str) -> DemoRun:
        command = [str(Path(sys.executable).with_name("apex")), "demo", *self.arguments, "--progress", *extra]
        process = subprocess.Popen(
            command, env=child_environment(self.settings), cwd=PROJECT_ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        run = DemoRun(process)
        threading.Thread(target=run.follow, daemon=True).start()
        return run

    def finish(self, *extra: str, seconds: float = 200) -> dict[str, Any]:
        """Run to the end; the result as the demo prints it for programs."""
        run = self.start("--json", *extra)
        assert run.process.stdout is not None
        printed = run.process.stdout.read()
        assert run.process.wait(seconds) == 0, "".join(run.output[-30:])
        result: dict[str, Any] = json.loads(printed)
        return result

    def kill(self, name: str) -> int:
        """SIGKILL a process of the stack by its record; its pid."""
        record = next(record for record in read_records(self.settings.run_dir) if record.name == name)
        os.kill(record.pid, signal.SIGKILL)
        return record.pid

    def wait_until_replaced(self, name: str, pid: int, seconds: float = 60) -> None:
        def replaced() -> bool:
            return any(
                record.name == name and record.pid != pid and record.process()
                for record in read_records(self.settings.run_dir)
            )

        deadline = time.monotonic() + seconds
        while not replaced():
            assert time.monotonic() < deadline, f"{name} did not come back within {seconds} s"
            time.sleep(0.05)


def child_running(parent: int, words: str) -> psutil.Process | None:
    """A descendant of `parent` whose command line contains `words`."""
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if words in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def eventually(find: Callable[[], Any], seconds: float = 90) -> Any:
    """The first truthy value that `find` returns."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)
    return found


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What must be the same however often and with whatever accidents the demo ran."""
    kept = {
        name: result[name] for name in ("stored_distinct", "counted", "totals", "segments", "mails", "exact")
    }
    kept["generated"] = result["simulated"]["generated"]
    kept["scored"] = result["scored"]
    kept["customers"] = result["customers"]
    kept["closing"] = result["closing"]
    return kept
