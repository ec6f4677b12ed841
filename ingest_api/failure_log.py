"""A line in the log for each request that failed, and no more than the disk and a reader can bear.

Belongs here: which failures are written how, and how many. Does not belong here: what failed (the routes).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from apex_pipelines.platform.logging import get_logger
from ingest_api.responses import HttpError

log = get_logger(__name__)

_LINES_PER_SECOND = 20


class _Allowance:
    """So many lines a second; the next line that is allowed tells how many were left out."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._second = 0
        self._used = 0
        self._left_out = 0

    def take(self) -> int | None:
        """None: write nothing. Otherwise the number of lines left out since the last one."""
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._used = second, 0
        if self._used >= _LINES_PER_SECOND:
            self._left_out += 1
            return None
        self._used += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


class FailureLog:
    """Client's mistakes at INFO, our own troubles at WARNING, bugs at ERROR with their traceback."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        # Apart, so that a client that errs a thousand times a second hides none of our own troubles.
        self._mistakes = _Allowance(monotonic)
        self._troubles = _Allowance(monotonic)

    def write(self, method: str, path: str, request_id: str, error: HttpError, bug: Exception | None) -> None:
        """Log that a request was answered with `error`, because of `bug` if that was one of ours."""
        left_out = (self._mistakes if error.status < 500 else self._troubles).take()
        if left_out is None:
            return
        fields: dict[str, object] = {
            "method": method[:20],
            "path": path[:200],
            "status": error.status,
            "code": error.code,
            "request_id": request_id,
        }
        if left_out:
            fields["left_out"] = left_out
        if bug is not None:
            log.error("request failed", exc_info=bug, **fields)
        elif error.status >= 500:
            log.warning("request not served", reason=str(error)[:300], **fields)
        else:
            log.info("request refused", **fields)
