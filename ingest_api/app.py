"""The RSGI application of one worker: builds its parts, routes requests, answers errors.

Belongs here: assembling and routing. Does not belong here: what a route does, processes, sockets (`server`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import uuid_utils

from apex_pipelines.metering.rules import MeteringRules
from apex_pipelines.platform import catalogue
from apex_pipelines.platform.clock import SystemClock, clock_from_setting
from apex_pipelines.platform.logging import configure_logging, get_logger
from apex_pipelines.settings import Settings
from ingest_api import metrics
from ingest_api.health_routes import HealthRoutes
from ingest_api.key_lookup import KeyLookup
from ingest_api.keys import KeyRing
from ingest_api.recent_events import RecentEvents
from ingest_api.request_body import RequestHeaders, RequestProtocol, read_body
from ingest_api.responses import Headers, HttpError, Response, error_response
from ingest_api.spool.group_commit import SpoolLimits, SpoolWriter
from ingest_api.usage_routes import UsageRoutes

log = get_logger(__name__)

_ORPHAN_CHECK_SECONDS = 0.25

Report = Callable[[], Awaitable[Response]]
Intake = Callable[[RequestHeaders, bytes], Awaitable[Response]]


class Scope(Protocol):
    """What the server tells about a request."""

    @property
    def proto(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> RequestHeaders: ...


class HttpProtocol(RequestProtocol, Protocol):
    """The server's handle for reading a request and answering it."""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...


class IngestApp:
    """One worker of the ingest API.

    Parameters
    ----------
    counters : SharedCounters
        Made by the parent process, shared by all workers.
    worker_locks : Path
        File by which workers agree on their numbers.
    parent : int
        Process id of the server; when it is gone the worker drains and ends, so that its port gets free.
    """

    def __init__(
        self, settings: Settings, counters: metrics.SharedCounters, worker_locks: Path, parent: int
    ) -> None:
        self._settings = settings
        self._shared_counters = counters
        self._worker_locks = worker_locks
        self._parent = parent
        self._reports: dict[str, Report] = {}
        self._intakes: dict[str, Intake] = {}

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Build the worker's parts; runs in the worker's process, before its first request."""
        settings = self._settings
        configure_logging(settings.log_level, settings.log_format)
        number = metrics.claim_worker_number(self._worker_locks, self._shared_counters.workers)
        self._counters = self._shared_counters.row(number)
        clock = clock_from_setting(settings.clock)
        limits = SpoolLimits(
            segment_size=settings.spool_segment_max_bytes,
            segment_age=settings.spool_segment_max_age_ms / 1000,
            spool_size=settings.spool_hard_limit_bytes,
        )
        self._spool = SpoolWriter(settings.spool_dir, f"w{number}", limits, loop, self._counters.flushed)
        lookup = KeyLookup(_database_url(settings))
        self._keys = KeyRing(lookup, settings.api_key_cache_seconds, loop)
        rules = MeteringRules(
            metrics=catalogue.metrics(),
            max_late=settings.event_max_late,
            max_early=timedelta(seconds=settings.event_max_early_seconds),
            new_event_id=lambda: str(uuid_utils.uuid7()),
        )
        usage = UsageRoutes(
            rules,
            self._keys,
            self._spool,
            RecentEvents(),
            self._counters,
            clock,
            settings.api_max_batch_events,
        )
        health = HealthRoutes(
            self._keys, self._shared_counters, settings.spool_dir, settings.spool_hard_limit_bytes, clock,
            SystemClock(),
        )  # fmt: skip
        self._intakes = {
            f"{prefix}/usage/{name}": handler
            for prefix in ("/api", "/api/v1")
            for name, handler in (("track", usage.track), ("batch", usage.batch))
        }
        self._reports = {"/health": health.health, "/ready": health.ready, "/metrics": health.metrics}
        loop.call_later(_ORPHAN_CHECK_SECONDS, self._end_when_orphaned, loop)
        log.info("ingest worker ready", worker=number)

    def __rsgi_del__(self, _loop: asyncio.AbstractEventLoop) -> None:
        """Seal the open segment once the last request is answered."""
        self._spool.close()
        self._keys.close()

    async def __rsgi__(self, scope: Scope, protocol: HttpProtocol) -> None:
        failure: Exception | None = None
        try:
            response = await self._respond(scope, protocol)
        except HttpError as error:
            response = error_response(error)
        except Exception as error:  # noqa: BLE001 - one broken request must not end the worker
            failure = error
            response = error_response(HttpError(500, "internal_error", "the request failed on our side"))
        self._counters.add(metrics.ANSWERS[response.status // 100])
        protocol.response_bytes(response.status, response.headers, response.body)
        if failure is not None:
            # After the answer, because on a full disk even logging may fail.
            log.error("request failed", path=scope.path, exc_info=failure)

    async def _respond(self, scope: Scope, protocol: HttpProtocol) -> Response:
        if scope.proto != "http":
            raise HttpError(400, "not_http", "this server speaks plain HTTP requests only")
        path, method = scope.path, scope.method
        intake = self._intakes.get(path)
        if intake is not None:
            _require_method(method, ("POST",))
            headers = scope.headers
            return await intake(
                headers, await read_body(headers, protocol, self._settings.api_max_body_bytes)
            )
        report = self._reports.get(path)
        if report is not None:
            _require_method(method, ("GET", "HEAD"))
            return await report()
        raise HttpError(404, "not_found", f"there is nothing at {path[:100]}")

    def _end_when_orphaned(self, loop: asyncio.AbstractEventLoop) -> None:
        if os.getppid() != self._parent:
            log.warning("the server process is gone; this worker drains and ends")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        loop.call_later(_ORPHAN_CHECK_SECONDS, self._end_when_orphaned, loop)


def _database_url(settings: Settings) -> Callable[[], str]:
    configured = settings.database_url
    if configured is not None:
        return lambda: configured
    # Only the embedded server's address needs this import, which doubles a worker's time to start.
    from apex_pipelines.platform.postgres import embedded_url

    return lambda: embedded_url(settings)


def _require_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        message = f"{method[:20]} is not possible here, {' or '.join(allowed)} is"
        raise HttpError(405, "method_not_allowed", message, [("allow", ", ".join(allowed))])
