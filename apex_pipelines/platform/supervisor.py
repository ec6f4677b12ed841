"""Starts, health-checks, restarts and stops the platform's processes in order.

Belongs here: processes and their records on disk. Does not belong here: which processes the platform has
(`stack.py`), or what a person is told about them (`cli.py`).

Each running process has a record `run/<name>.json` with its pid and start time. The record is what makes a
killed supervisor harmless: whoever comes next finds what was left running and ends it first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from apex_pipelines.platform.logging import get_logger

log = get_logger(__name__)

RESTART_BACKOFF_SECONDS = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_AFTER_SECONDS = 60.0
LOG_ROTATE_BYTES = 50_000_000


class StackError(RuntimeError):
    """A process can't be started or kept running; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What is known of a running process: enough to find it again without mistaking a reused pid for it."""

    name: str
    pid: int
    create_time: float
    url: str | None = None
    log: str | None = None
    restarts: int = 0

    def pid_was_reused(self) -> bool:
        """Whether the pid may belong to a stranger now, so that nothing under it may be touched."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.create_time) >= 1.0
        except psutil.NoSuchProcess:
            return self.create_time < psutil.boot_time()

    def process(self) -> psutil.Process | None:
        """The process, or None when it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def write_record(run_dir: Path, record: ProcessRecord) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / f".{record.name}.tmp"
    temporary.write_text(json.dumps(asdict(record)))
    temporary.replace(run_dir / f"{record.name}.json")


def read_records(run_dir: Path) -> list[ProcessRecord]:
    """Records of `run_dir`, whether or not their processes still live."""
    records = []
    for path in sorted(run_dir.glob("*.json")):
        try:
            records.append(ProcessRecord(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            log.warning("unreadable process record ignored", path=str(path), error=str(error))
    return records


def check_free_port(host: str, port: int, setting: str) -> None:
    """Raise `StackError` naming the setting when something already listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"port {port} on {host} is in use ({error.strerror}); stop what uses it or set {setting}"
            ) from error


def session_members(leader: int) -> list[psutil.Process]:
    """Processes of the session that `leader` opened, the leader first; it may be dead itself."""
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
    return sorted(members, key=lambda process: process.pid != leader)


def end_session(leader: int, seconds: float) -> None:
    """SIGTERM to a session's leader, SIGKILL to whatever of the session is left after `seconds`.

    By session and not by tree: the children of a leader that was killed belong to nobody's tree.
    """
    members = session_members(leader)
    for process in members[:1]:
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(members[:1], timeout=seconds)
    _, alive = psutil.wait_procs(members, timeout=1.0)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5.0)


def end_leftover(run_dir: Path, record: ProcessRecord, seconds: float = 5.0) -> None:
    """End the session of a recorded process, whether or not its leader still lives, and drop the record."""
    if not record.pid_was_reused() and (record.process() is not None or session_members(record.pid)):
        log.info("ending what an earlier run left behind", component=record.name, pid=record.pid)
        end_session(record.pid, seconds)
    (run_dir / f"{record.name}.json").unlink(missing_ok=True)


class Component(Protocol):
    """One thing that runs. `start` returns when it is ready; `healthy` is asked about once a second."""

    name: str

    def start(self) -> None: ...
    def healthy(self) -> bool: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class Process:
    """A child process with a readiness check, its output in a log file.

    Parameters
    ----------
    ready : callable
        Returns True once the process serves; asked until `ready_seconds` have passed.
    listens : tuple of (host, port, name of the setting), optional
        Checked to be free before each start, so that a stranger on the port is named at once.
    stop_seconds : float
        Time it gets after SIGTERM before SIGKILL.
    """

    name: str
    command: Sequence[str]
    env: dict[str, str]
    run_dir: Path
    log_path: Path
    ready: Callable[[], bool] = lambda: True
    url: str | None = None
    listens: tuple[str, int, str] | None = None
    ready_seconds: float = 60.0
    stop_seconds: float = 20.0
    restarts: int = 0
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self._end_leftover()
        if self.listens is not None:
            check_free_port(*self.listens)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_ROTATE_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as out:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops in order.
            self._child = subprocess.Popen(
                list(self.command), env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        record = ProcessRecord(
            self.name, self._child.pid, psutil.Process(self._child.pid).create_time(), self.url,
            str(self.log_path), self.restarts,
        )  # fmt: skip
        write_record(self.run_dir, record)
        deadline = time.monotonic() + self.ready_seconds
        while not self.ready():
            if self._child.poll() is not None:
                raise StackError(
                    f"{self.name} ended with exit code {self._child.returncode} while starting: "
                    f"{self.last_log_line()} (whole log: {self.log_path})"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise StackError(
                    f"{self.name} was not ready after {self.ready_seconds:.0f} s; see its log {self.log_path}"
                )
            time.sleep(0.05)

    def healthy(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def stop(self) -> None:
        if self._child is not None:
            if self._child.poll() is None:
                end_session(self._child.pid, self.stop_seconds)
            self._child.wait()
            self._child = None
        (self.run_dir / f"{self.name}.json").unlink(missing_ok=True)

    def last_log_line(self) -> str:
        """Last non-empty line that the process wrote, for error messages."""
        with self.log_path.open(errors="replace") as lines:
            tail = deque((line.strip() for line in lines if line.strip()), maxlen=1)
        return tail[0] if tail else "it wrote nothing"

    def _end_leftover(self) -> None:
        for record in read_records(self.run_dir):
            if record.name == self.name:
                end_leftover(self.run_dir, record, self.stop_seconds)


class Supervisor:
    """Runs components in order and keeps them running until it is stopped.

    Use as a context manager: entering starts everything (stopping what started when one fails), leaving
    stops everything in reverse order.
    """

    def __init__(self, components: Sequence[Component], run_dir: Path, *, label: str = "apex up") -> None:
        self.components = list(components)
        self.run_dir = run_dir
        self.label = label
        self._started: list[Component] = []
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._stable_since: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Supervisor:
        self._claim()
        self._end_strangers()
        try:
            for component in self.components:
                began = time.monotonic()
                self._started.append(component)
                component.start()
                log.info("started", component=component.name, seconds=round(time.monotonic() - began, 2))
        except BaseException:
            self._stop_all()
            raise
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        self._stop_all()

    def wait(self) -> None:
        """Block until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        signal.signal(signal.SIGINT, lambda *_: self._stopping.set())
        while not self._stopping.wait(0.5):
            pass

    def _claim(self) -> None:
        for record in read_records(self.run_dir):
            process = record.process() if record.name == "supervisor" else None
            if process is not None and process.pid != os.getpid():
                raise StackError(
                    f"the platform already runs on this data folder (process {process.pid}); look at it with "
                    f"`apex status`, stop it with Ctrl-C where it runs or `kill {process.pid}`, "
                    "or set APEX_HOME to use another folder"
                )
        own = psutil.Process()
        write_record(self.run_dir, ProcessRecord("supervisor", own.pid, own.create_time()))

    def _end_strangers(self) -> None:
        """End what an earlier run left behind and no component of this one will end (such as a graph run)."""
        known = {component.name for component in self.components} | {"supervisor"}
        for record in read_records(self.run_dir):
            if record.name not in known:
                end_leftover(self.run_dir, record)

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            for component in self.components:
                if self._stopping.is_set():
                    return
                try:
                    self._keep(component)
                except Exception as error:  # noqa: BLE001 - the watch must outlive whatever one part does
                    log.error("watching failed", component=component.name, error=repr(error))

    def _keep(self, component: Component) -> None:
        name, now = component.name, time.monotonic()
        if component.healthy():
            if now - self._stable_since.setdefault(name, now) > STABLE_AFTER_SECONDS:
                self._failures.pop(name, None)
            return
        self._stable_since.pop(name, None)
        if now < self._retry_at.get(name, 0.0):
            return
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        backoff = RESTART_BACKOFF_SECONDS[min(failures, len(RESTART_BACKOFF_SECONDS)) - 1]
        log.warning("restarting", component=name, failures=failures)
        if isinstance(component, Process):
            component.restarts += 1
        try:
            component.start()
            log.info("restarted", component=name)
        except Exception as error:  # noqa: BLE001 - tried again after the pause, whatever it was
            log.error("restart failed", component=name, error=str(error), next_try_seconds=backoff)
        self._retry_at[name] = time.monotonic() + backoff

    def _stop_all(self) -> None:
        for component in reversed(self._started):
            try:
                component.stop()
            except (psutil.Error, OSError, subprocess.SubprocessError) as error:
                log.error("could not be stopped", component=component.name, error=str(error))
        self._started.clear()
        (self.run_dir / "supervisor.json").unlink(missing_ok=True)
