"""Making accepted events durable: what every route that takes events does before it answers.

Belongs here: spool, memory of repeats and counters, in their order. Does not belong here: which events count.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.metering.rejections import Rejection
from ingest_api import metrics
from ingest_api.recent_events import RecentEvents
from ingest_api.requests import Request
from ingest_api.responses import HttpError
from ingest_api.spool.group_commit import SpoolBusy, SpoolFull, SpoolUnavailable, SpoolWriter

_encode_rows = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Intake:
    """Where accepted events go."""

    spool: SpoolWriter
    recent: RecentEvents
    counters: metrics.Counters

    async def take(self, event: AcceptedEvent, request: Request) -> bool:
        """Make one event of `request` durable; False when it is a repeat that is durable already.

        Raises
        ------
        HttpError
            429 while the backlog is beyond its soft limit, 503 if it can't be written now.
        """
        if event in self.recent:
            self.counters.add(metrics.DUPLICATE)
            return False
        await self.make_durable([event], request)
        return True

    async def make_durable(self, events: list[AcceptedEvent], request: Request) -> None:
        """Write events of `request` to the spool and remember them; raises as `take`."""
        rows = _encode_rows(events)
        try:
            await self.spool.append(rows, len(events), request.trace)
        except SpoolBusy as error:
            self.counters.add(metrics.THROTTLED["spool"])
            seconds = str(error.retry_after)
            headers = [
                ("retry-after", seconds), ("ratelimit-remaining", "0"), ("ratelimit-reset", seconds)
            ]  # fmt: skip
            message = f"nothing was recorded: {error}; send it again in {seconds} s with the same event_id"
            raise HttpError(429, "spool_busy", message, headers) from error
        except SpoolUnavailable as error:
            code = "spool_full" if isinstance(error, SpoolFull) else "storage_unavailable"
            headers = [("retry-after", str(error.retry_after))]
            message = f"nothing was recorded: {error}; send it again with the same event_id"
            raise HttpError(503, code, message, headers) from error
        self.recent.remember(events)
        self.counters.taken(len(events), len(rows))

    def unprocessable(self, rejection: Rejection) -> HttpError:
        """Count a rejection, and its answer."""
        self.counters.add(metrics.REJECTED[rejection.reason])
        return HttpError(422, rejection.reason, rejection.message)
