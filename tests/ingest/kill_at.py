"""Runs one of our processes so that it ends itself, by SIGKILL, at a point that is named while it runs.

    python -m tests.ingest.kill_at TRAP loader [arguments of the process...]

The product holds no hooks for this: functions between which something can go wrong are wrapped here, before
the process's `main` runs, and workers are forks of it. Whichever process first reaches the point whose name
is in the file TRAP renames that file and dies, so each name written there costs one process its life.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any


class Moment(Enum):
    BEFORE = "before"
    HALF = "half"  # the call gets the first half of its last argument, which is bytes
    AFTER = "after"


class Role(Enum):
    """The processes that can be killed at a point; a value is the module whose `main` starts it."""

    WORKER = "ingest_api.__main__"
    LOADER = "ingest_api.loader"
    WAREHOUSE = "apex_pipelines.platform.warehouse.__main__"


@dataclass(frozen=True)
class Point:
    """A place in a process: before, in the middle of or after a call of `function` for which `when` holds.

    Attributes
    ----------
    name : str
        What has been done by then, and what has not.
    function : str
        As ``module:name`` or ``module:Class.name``, where the caller looks it up.
    """

    role: Role
    name: str
    moment: Moment
    function: str
    when: Callable[..., bool] = lambda *_arguments, **_named: True


def _writes(start: bytes) -> Callable[..., bool]:
    return lambda _descriptor, data: bytes(data).startswith(start)


def _is_named(suffix: str) -> Callable[..., bool]:
    return lambda path, *_arguments, **_named: path.suffix == suffix


def _streams(_connection: object, data: bytes) -> bool:
    """Whether a piece of a request's streamed body is sent, which only inserts have."""
    return re.match(rb"[1-9a-f][0-9a-f]*\r\n", bytes(data[:12])) is not None


def _shortens(_descriptor: int, length: int) -> bool:
    return length > 0


def _brings_usage(_connection: object, head: Any, _answer: object) -> bool:
    return str(head.path).startswith("/api/usage/")


_HEADER, _FRAME, _FOOTER = _writes(b"APXSPL"), _writes(b"\xffAPF"), _writes(b"\xffAPE")
_WRITING, _READING = "ingest_api.spool.writing", "ingest_api.spool.reading"
_ENGINE = "apex_pipelines.platform.warehouse.engine"
_TABLE = "ingest_api.raw_events:RawEvents"

# In the order in which a process gets there. What is after one call is before the next, so each gap between
# two effects is named once. A SIGKILL takes nothing from the kernel's cache: points around a sync differ in
# what may have been acknowledged.
POINTS = [
    Point(Role.WORKER, "segment made, no header", Moment.BEFORE, f"{_WRITING}:write_all", _HEADER),
    Point(Role.WORKER, "half a header", Moment.HALF, f"{_WRITING}:write_all", _HEADER),
    Point(Role.WORKER, "header written, not synced", Moment.AFTER, f"{_WRITING}:write_all", _HEADER),
    Point(Role.WORKER, "header synced, not open", Moment.BEFORE, "pathlib:Path.rename", _is_named(".new")),
    Point(Role.WORKER, "open, name not synced", Moment.AFTER, "pathlib:Path.rename", _is_named(".new")),
    Point(Role.WORKER, "frames not written", Moment.BEFORE, f"{_WRITING}:write_all", _FRAME),
    Point(Role.WORKER, "half of the frames", Moment.HALF, f"{_WRITING}:write_all", _FRAME),
    Point(Role.WORKER, "frames written, not synced", Moment.AFTER, f"{_WRITING}:write_all", _FRAME),
    Point(Role.WORKER, "frames synced, nobody told", Moment.AFTER, f"{_WRITING}:SegmentFile.append"),
    Point(Role.WORKER, "durable and counted", Moment.AFTER, "ingest_api.intake:Intake.make_durable"),
    Point(
        Role.WORKER,
        "answer given",
        Moment.AFTER,
        "ingest_api.http_connection:HttpConnection._write",
        _brings_usage,
    ),
    Point(Role.WORKER, "no footer", Moment.BEFORE, f"{_WRITING}:write_all", _FOOTER),
    Point(Role.WORKER, "half a footer", Moment.HALF, f"{_WRITING}:write_all", _FOOTER),
    Point(Role.WORKER, "footer written, not synced", Moment.AFTER, f"{_WRITING}:write_all", _FOOTER),
    Point(Role.WORKER, "footer synced, not sealed", Moment.BEFORE, "pathlib:Path.rename", _is_named(".open")),
    Point(Role.WORKER, "sealed, name not synced", Moment.AFTER, "pathlib:Path.rename", _is_named(".open")),
    Point(Role.WORKER, "sealed", Moment.AFTER, f"{_WRITING}:SegmentFile.seal"),
    Point(Role.WORKER, "webhook not stored", Moment.BEFORE, "ingest_api.webhook_inbox:WebhookInbox.store"),
    Point(Role.WORKER, "webhook stored", Moment.AFTER, "ingest_api.webhook_inbox:WebhookInbox.store"),
    Point(Role.LOADER, "torn tail found", Moment.BEFORE, f"{_READING}:_set_aside"),
    Point(Role.LOADER, "tail copied, not named", Moment.BEFORE, "pathlib:Path.rename", _is_named(".writing")),
    Point(Role.LOADER, "tail set aside, not cut off", Moment.BEFORE, "os:ftruncate", _shortens),
    Point(Role.LOADER, "tail cut off, no footer", Moment.BEFORE, f"{_READING}:write_all", _FOOTER),
    Point(Role.LOADER, "half a footer of recovery", Moment.HALF, f"{_READING}:write_all", _FOOTER),
    Point(Role.LOADER, "recovered, not synced", Moment.AFTER, f"{_READING}:write_all", _FOOTER),
    Point(Role.LOADER, "recovered, not sealed", Moment.BEFORE, "pathlib:Path.rename", _is_named(".open")),
    Point(Role.LOADER, "recovered, name not synced", Moment.AFTER, "pathlib:Path.rename", _is_named(".open")),
    Point(Role.LOADER, "in doubt, not looked up", Moment.BEFORE, f"{_TABLE}.stored_rows"),
    Point(Role.LOADER, "looked up", Moment.AFTER, f"{_TABLE}.stored_rows"),
    Point(Role.LOADER, "insert not begun", Moment.BEFORE, f"{_TABLE}.insert"),
    Point(Role.LOADER, "half of the insert sent", Moment.HALF, "http.client:HTTPConnection.send", _streams),
    Point(Role.LOADER, "insert sent, no answer", Moment.AFTER, "http.client:HTTPConnection.send", _streams),
    Point(Role.LOADER, "inserted", Moment.AFTER, f"{_TABLE}.insert"),
    Point(Role.LOADER, "letters not written", Moment.BEFORE, "ingest_api.dead_letters:DeadLetters.bury"),
    Point(Role.LOADER, "letters written", Moment.AFTER, "ingest_api.dead_letters:DeadLetters.bury"),
    Point(Role.LOADER, "not proved", Moment.BEFORE, f"{_TABLE}.stored"),
    Point(Role.LOADER, "proved, nothing removed", Moment.BEFORE, "pathlib:Path.unlink", _is_named(".seg")),
    Point(Role.LOADER, "one of several removed", Moment.AFTER, "pathlib:Path.unlink", _is_named(".seg")),
    Point(Role.LOADER, "all removed, not synced", Moment.BEFORE, "ingest_api.loader:sync_folder"),
    Point(Role.LOADER, "removed, not noted", Moment.BEFORE, "ingest_api.loader:write_status"),
    Point(Role.WAREHOUSE, "no data of the insert", Moment.BEFORE, f"{_ENGINE}:Insert.append"),
    Point(Role.WAREHOUSE, "half of the data", Moment.HALF, f"{_ENGINE}:Insert.append"),
    Point(Role.WAREHOUSE, "all data, not committed", Moment.AFTER, f"{_ENGINE}:Insert.append"),
    Point(Role.WAREHOUSE, "committed, not answered", Moment.AFTER, f"{_ENGINE}:Insert.finish"),
]


class Trap:
    """The file that names the point at which the next process is to die.

    Parameters
    ----------
    path : Path
        The file; what is beside it under the same stem tells who died.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, point: Point) -> None:
        """Name the next point; replaced in one step, since processes read it all the time."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(point.name)
        draft.replace(self.path)

    def victim(self) -> int | None:
        """Process id of who died since this was asked last; None when nobody did."""
        for path in self.path.parent.glob(f"{self.path.stem}.*.sprung"):
            path.unlink()
            return int(path.suffixes[-2].removeprefix("."))
        return None

    def springs(self, point: Point) -> bool:
        """Whether this process is to die at `point`, which only the first to ask is told."""
        try:
            if self.path.read_text() != point.name:
                return False
            os.rename(self.path, self.path.with_suffix(f".{os.getpid()}.sprung"))
        except FileNotFoundError:
            return False
        return True


def lay(trap: Trap, point: Point) -> None:
    """Wrap the point's function in this process, so that the trap springs there.

    Those of workers spring in its forks alone: the server writes to the spool as well, to see whether it can.
    """
    server = os.getpid() if point.role is Role.WORKER else None
    module, _, path = point.function.partition(":")
    *outer, name = path.split(".")
    owner: Any = functools.reduce(getattr, outer, import_module(module))
    whole = getattr(owner, name)

    def is_reached(*arguments: Any, **named: Any) -> bool:
        return os.getpid() != server and point.when(*arguments, **named) and trap.springs(point)

    def come(*arguments: Any, **named: Any) -> None:
        if point.moment is Moment.AFTER or not is_reached(*arguments, **named):
            return
        if point.moment is Moment.HALF:
            *first, data = arguments
            whole(*first, bytes(data[: len(data) // 2]), **named)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(*arguments: Any, **named: Any) -> None:
        if point.moment is Moment.AFTER and is_reached(*arguments, **named):
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(whole)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        come(*arguments, **named)
        result = whole(*arguments, **named)
        leave(*arguments, **named)
        return result

    @functools.wraps(whole)
    async def wrapped_coroutine(*arguments: Any, **named: Any) -> Any:
        come(*arguments, **named)
        result = await whole(*arguments, **named)
        leave(*arguments, **named)
        return result

    setattr(owner, name, wrapped_coroutine if inspect.iscoroutinefunction(whole) else wrapped)


def main() -> int:
    """Lay the traps of the process's role, then be that process; returns its exit code."""
    path, role_name, *rest = sys.argv[1:]
    role = Role[role_name.upper()]
    multiprocessing.set_start_method("fork")  # what is wrapped here must be so in the workers
    for point in POINTS:
        if point.role is role:
            lay(Trap(Path(path)), point)
    sys.argv = [role.value, *rest]
    return int(import_module(role.value).main())


if __name__ == "__main__":
    sys.exit(main())
