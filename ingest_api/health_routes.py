"""`GET /health`, `/ready` and `/metrics`: how the API is.

Belongs here: reports for supervisors, load balancers and Prometheus. Does not belong here: counting.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from apex_pipelines.platform.clock import Clock
from ingest_api.exposition import render
from ingest_api.keys import KeyRing
from ingest_api.loader_status import read_status
from ingest_api.metrics import SharedCounters
from ingest_api.requests import Request
from ingest_api.responses import Response, json_response, text_response
from ingest_api.spool.group_commit import SpoolWriter
from ingest_api.spool.segments import SpoolUsage, damaged_pieces, spool_usage

_LAGGING_SECONDS = 60.0


class Health(msgspec.Struct):
    """Liveness; `timestamp` is the platform's time, ISO 8601."""

    status: Literal["ok"]
    version: str
    timestamp: str


class PostgresCheck(msgspec.Struct):
    ok: bool


class KeysCheck(msgspec.Struct):
    """Whether keys can be checked: by PostgreSQL, or known ones by its last answers."""

    ok: bool


class SpoolCheck(msgspec.Struct):
    """`lagging` says that the loader is behind; acknowledged events are safe and more can be taken."""

    ok: bool
    bytes: int
    segments: int
    backlog_seconds: float
    lagging: bool


class Checks(msgspec.Struct):
    postgres: PostgresCheck
    keys: KeysCheck
    spool: SpoolCheck


class Readiness(msgspec.Struct):
    """`degraded` takes events, but only of keys that it knows: PostgreSQL is away."""

    status: Literal["ready", "degraded", "not_ready"]
    checks: Checks


@dataclass(frozen=True, slots=True)
class HealthRoutes:
    """Handlers of the reports, with what they look at.

    Attributes
    ----------
    clock : Clock
        The platform's time, for the report itself.
    host_clock : Clock
        The machine's time, by which segments are named, for the age of the backlog.
    """

    keys: KeyRing
    spool: SpoolWriter
    counters: SharedCounters
    spool_dir: Path
    spool_limit: int
    clock: Clock
    host_clock: Clock

    async def health(self, _request: Request) -> Response:
        """Alive: this worker answers."""
        return json_response(Health("ok", version("apex-pipelines"), self.clock.now().isoformat()))

    async def ready(self, _request: Request) -> Response:
        """Able to take events: keys can be checked, the spool has room and its disk works. 503 otherwise.

        An instance without PostgreSQL stays in: a balancer would else take out all of them at once, and with
        them the events that they can still take.
        """
        postgres = PostgresCheck(await self.keys.is_reachable())
        keys = KeysCheck(postgres.ok or self.keys.has_usable(self.clock.now()))
        usage = await asyncio.to_thread(self._usage)
        if usage is None:
            spool = SpoolCheck(False, 0, 0, 0.0, True)
        else:
            age = self._backlog_seconds(usage)
            takes_events = usage.size < self.spool_limit and await self.spool.is_writable()
            spool = SpoolCheck(takes_events, usage.size, usage.segments, age, age > _LAGGING_SECONDS)
        checks = Checks(postgres, keys, spool)
        if not (keys.ok and spool.ok):
            return json_response(Readiness("not_ready", checks), 503)
        return json_response(Readiness("ready" if postgres.ok else "degraded", checks))

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text for all workers and the loader."""
        usage = await asyncio.to_thread(self._usage) or SpoolUsage(0, 0, None)
        loader = await asyncio.to_thread(read_status, self.spool_dir)
        damaged = await asyncio.to_thread(damaged_pieces, self.spool_dir)
        now = self.host_clock.now().timestamp()
        text = render(self.counters, usage, self._backlog_seconds(usage), damaged, loader, now)
        return text_response(text, "text/plain; version=0.0.4; charset=utf-8")

    def _usage(self) -> SpoolUsage | None:
        try:
            return spool_usage(self.spool_dir)
        except OSError:
            return None  # the report says so: the check fails

    def _backlog_seconds(self, usage: SpoolUsage) -> float:
        if usage.oldest_ms is None:
            return 0.0
        return max(0.0, round(self.host_clock.now().timestamp() - usage.oldest_ms / 1000, 3))
