"""A line in the log for each request that failed, and no more than the disk and a reader can bear.

Belongs here: which requests are written how, and how many. Does not belong here: what failed (the routes).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from apex_pipelines.platform.logging import get_logger
from ingest_api.log_allowance import LogAllowance
from ingest_api.responses import HttpError

log = get_logger(__name__)

_LINES_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Answered:
    """A request and its answer; `route` is one of `routing.ROUTES`, `path` what the client wrote."""

    method: str
    path: str
    route: str
    request_id: str
    status: int
    seconds: float
    trace_id: str | None = None

    def fields(self) -> dict[str, object]:
        """What a line says of it; the query string and headers stay out, since keys come in them."""
        fields: dict[str, object] = {
            "method": self.method[:20],
            "path": self.path[:200],
            "route": self.route,
            "status": self.status,
            "duration_ms": round(self.seconds * 1000, 3),
            "request_id": self.request_id,
        }
        if self.trace_id is not None:
            fields["trace_id"] = self.trace_id
        return fields


class RequestLog:
    """Client's mistakes at INFO, our own troubles at WARNING, bugs at ERROR with their traceback.

    What went well is written at DEBUG, each request: a line costs more than taking an event.

    Attributes
    ----------
    writes_all : bool
        Whether requests that went well are written.
    """

    def __init__(self, level: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.writes_all = level == "DEBUG"
        # Apart, so that a client that errs a thousand times a second hides none of our own troubles.
        self._mistakes = LogAllowance(_LINES_PER_SECOND, 1.0, monotonic)
        self._troubles = LogAllowance(_LINES_PER_SECOND, 1.0, monotonic)

    def write(self, answered: Answered, error: HttpError | None, bug: Exception | None) -> None:
        """Log a request that was answered, with `error` if it failed, because of `bug` if that was ours."""
        if error is None:
            if self.writes_all:
                log.debug("request answered", **answered.fields())
            return
        left_out = (self._mistakes if error.status < 500 else self._troubles).take()
        if left_out is None:
            return
        fields = {**answered.fields(), "code": error.code}
        if left_out:
            fields["left_out"] = left_out
        if bug is not None:
            log.error("request failed", exc_info=bug, **fields)
        elif error.status >= 500:
            log.warning("request not served", reason=str(error)[:300], **fields)
        else:
            log.info("request refused", **fields)
