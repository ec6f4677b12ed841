"""`python -m tests.ingest.moved_clock FILE MODULE ARGUMENTS`: a module under a clock that a file sets wrong.

The file holds the seconds to add. The machine's own clock is everybody's and must not be touched, so this
stands between the platform and it, at the two places where wall time comes in. Monotonic time is left alone,
as the kernel leaves it alone when the clock is set.
"""

from __future__ import annotations

import runpy
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uuid_utils

from apex_pipelines.platform.clock import SystemClock

_file = Path(sys.argv[1])
_uuid7 = uuid_utils.uuid7


def _seconds() -> float:
    return time.time() + float(_file.read_text() or 0)


def _now(_self: SystemClock) -> datetime:
    return datetime.fromtimestamp(_seconds(), UTC)


def _named_now() -> uuid_utils.UUID:
    return _uuid7(nanoseconds=int(_seconds() * 1e9))


SystemClock.now = _now  # type: ignore[method-assign]
uuid_utils.uuid7 = _named_now  # type: ignore[assignment]
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
