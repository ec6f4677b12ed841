"""The application of one worker: builds its parts, routes requests, answers errors.

Belongs here: assembling and routing. Does not belong here: what a route does, connections
(`http_connection`), processes (`worker`, `server`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import uuid_utils

from apex_pipelines.customers.tokens import token_secret
from apex_pipelines.metering.rules import MeteringRules
from apex_pipelines.platform import catalogue
from apex_pipelines.platform.catalogue import Metric
from apex_pipelines.platform.clock import SystemClock, clock_from_setting
from apex_pipelines.platform.logging import capture_library_logs, configure_logging, get_logger
from apex_pipelines.settings import Settings
from ingest_api import endpoints, metrics
from ingest_api.cors import CorsPolicy
from ingest_api.counted_usage import CountedUsage
from ingest_api.customer_directory import CustomerDirectory
from ingest_api.database import Database, DatabaseThread
from ingest_api.docs_routes import DocsRoutes
from ingest_api.health_routes import HealthRoutes
from ingest_api.http_head import RequestHead
from ingest_api.intake import Intake
from ingest_api.key_cache import KeyCache, store_name
from ingest_api.key_lookup import KeyLookup
from ingest_api.keys import KeyRing
from ingest_api.life_event_routes import LifeEventRoutes
from ingest_api.rate_limit import KeyRates
from ingest_api.recent_events import RecentEvents
from ingest_api.request_body import check_content_type, decompressed
from ingest_api.request_limit import RequestLimit
from ingest_api.request_log import Answered, RequestLog
from ingest_api.requests import Handler, Request, request_id
from ingest_api.responses import Answer, HttpError, Response, answer, error_response
from ingest_api.routing import Router
from ingest_api.spool.group_commit import SpoolLimits, SpoolWriter
from ingest_api.subscription_lookup import SubscriptionLookup
from ingest_api.tracing import RequestTrace, start_tracing
from ingest_api.usage_answers import UsageAnswers
from ingest_api.usage_routes import UsageRoutes
from ingest_api.warehouse_reader import WarehouseReader
from ingest_api.webhook_inbox import WebhookInbox
from ingest_api.webhook_routes import WebhookRoutes

log = get_logger(__name__)


class IngestApp:
    """One worker of the ingest API.

    Parameters
    ----------
    counters : SharedCounters
        Made by the parent process, shared by all workers.
    worker_locks : Path
        File by which workers agree on their numbers.
    """

    def __init__(self, settings: Settings, counters: metrics.SharedCounters, worker_locks: Path) -> None:
        self._settings = settings
        self._shared_counters = counters
        self._worker_locks = worker_locks
        self._cors = CorsPolicy(settings.cors_origins)
        self._requests = RequestLog(settings.log_level)

    async def open(self) -> None:
        """Build the worker's parts; call in the worker's process, before its first request."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        configure_logging(settings.log_level, settings.log_format)
        capture_library_logs(settings.log_format)
        number = metrics.claim_worker_number(self._worker_locks, self._shared_counters.workers)
        self._counters = self._shared_counters.row(number)
        limits = SpoolLimits(
            segment_size=settings.spool_segment_max_bytes,
            segment_age=settings.spool_segment_max_age_ms / 1000,
            spool_size=settings.spool_hard_limit_bytes,
            soft_size=settings.spool_soft_limit_bytes,
        )
        self._tracing = start_tracing(settings, "apex-ingest-api")
        self._spool = SpoolWriter(
            settings.spool_dir, f"w{number}", limits, loop, self._counters.flushed,
            self._tracing.committed if self._tracing is not None else None,
        )  # fmt: skip
        url = _database_url(settings)
        # Two servers on one data folder have workers of the same number: the port tells their files apart.
        name = f"{self._worker_locks.stem}-w{number}"
        self._keys = KeyRing(
            KeyLookup(Database(url, read_only=True)),
            KeyCache(settings.known_keys_dir, name, store_name(settings.database_url), SystemClock()),
            loop,
            fresh_seconds=settings.api_key_cache_seconds,
            outage_seconds=settings.api_key_outage_hours * 3600,
            save_seconds=settings.api_key_file_seconds,
        )
        # Apart, so that what the operator, people and providers ask don't wait for one another.
        self._lookups = DatabaseThread(Database(url, read_only=True), loop)
        self._subscriptions = DatabaseThread(Database(url, read_only=True), loop)
        self._inbox = DatabaseThread(Database(url), loop)
        self._warehouse = WarehouseReader(_clickhouse_url(settings))
        self._router = Router(self._handlers())
        log.info("ingest worker ready", worker=number)

    def close(self) -> None:
        """Seal the open segment, once the last request is answered; blocks."""
        self._spool.close()
        self._keys.close()
        self._lookups.close()
        self._subscriptions.close()
        self._inbox.close()
        self._warehouse.close()
        if self._tracing is not None:
            self._tracing.close()

    def _handlers(self) -> dict[endpoints.Endpoint, Handler]:
        settings = self._settings
        clock = clock_from_setting(settings.clock)
        intake = Intake(self._spool, RecentEvents(), self._counters)
        workers = self._shared_counters.workers
        rates = KeyRates(
            settings.api_key_events_per_second / workers,
            settings.api_key_burst_events / workers,
            time.monotonic,
        )
        usage = UsageRoutes(
            self._rules(catalogue.telemetry_metrics()), self._keys, rates, intake, clock,
            settings.api_max_batch_events,
        )  # fmt: skip
        life = LifeEventRoutes(
            self._rules(catalogue.metrics()), self._keys, CustomerDirectory(self._lookups), intake, clock
        )
        seen = {name: metric for name, metric in catalogue.metrics().items() if metric.kind == "usage"}
        answers = UsageAnswers(
            secret=token_secret(settings),
            limit=RequestLimit(settings.api_reads_per_window, settings.api_reads_window_seconds),
            subscriptions=SubscriptionLookup(self._subscriptions),
            usage=CountedUsage(self._warehouse, list(seen)),
            seen=seen,
            plans=catalogue.plans(),
            counters=self._counters,
            clock=clock,
        )
        webhooks = WebhookRoutes(
            WebhookInbox(self._inbox), clock, settings.stripe_webhook_secret, settings.resend_webhook_secret
        )
        health = HealthRoutes(
            self._keys, self._spool, self._shared_counters, settings.spool_dir,
            settings.spool_hard_limit_bytes, clock, SystemClock(),
        )  # fmt: skip
        docs = DocsRoutes(settings)
        return {
            endpoints.TRACK: usage.track,
            endpoints.BATCH: usage.batch,
            endpoints.CURRENT: answers.current,
            endpoints.ANALYTICS: answers.analytics,
            endpoints.LIMITS: answers.limits,
            endpoints.LIFE_EVENT: life.record,
            endpoints.STRIPE_WEBHOOK: webhooks.stripe,
            endpoints.RESEND_WEBHOOK: webhooks.resend,
            endpoints.HEALTH: health.health,
            endpoints.READY: health.ready,
            endpoints.METRICS: health.metrics,
            endpoints.OPENAPI: docs.openapi,
            endpoints.DOCS: docs.docs,
        }

    def _rules(self, known: dict[str, Metric]) -> MeteringRules:
        return MeteringRules(
            metrics=known,
            max_late=self._settings.event_max_late,
            max_early=timedelta(seconds=self._settings.event_max_early_seconds),
            new_event_id=lambda: str(uuid_utils.uuid7()),
        )

    def refusal(self, head: RequestHead) -> HttpError | None:
        """Why a request is refused whatever its body is."""
        try:
            if head.method == "OPTIONS" and self._router.is_people_facing(head.path):
                return None
            head.found = self._router.find(head.method, head.path)
            endpoint: endpoints.Endpoint = head.found[0]
            if endpoint.bodies:
                check_content_type(head.headers, endpoint.content_types)
        except HttpError as error:
            return error
        return None

    async def answer(self, head: RequestHead, body: bytes, problem: HttpError | None) -> Answer:
        """Answer a request, or tell of the `problem` that it has on the wire; bugs of handlers are a 500."""
        headers = head.headers
        identity = request_id(headers)
        trace = self._tracing.begin_request(headers) if self._tracing is not None else None
        failure, bug = problem, None
        if failure is None:
            try:
                response = await self._respond(head, body, identity, trace)
            except HttpError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - one broken request must not end the worker
                bug = error
                failure = HttpError(500, "internal_error", "the request failed on our side")
        if failure is not None:
            response = error_response(failure, identity)
        more = self._cors.answer_headers(headers) if self._router.is_people_facing(head.path) else []
        answered = answer(response, identity, more)
        route, seconds = self._router.route(head.path), time.perf_counter() - head.began
        self._counters.answered(route, response.status, seconds)
        if failure is not None and failure.code in metrics.AUTH_FAILURES:
            self._counters.add(metrics.AUTH_FAILURES[failure.code])
        trace_id = None
        if trace is not None:
            trace_id = trace.trace_id
            trace.end(head.method, route, response.status, identity)
        if failure is not None or self._requests.writes_all:
            line = Answered(head.method, head.path, route, identity, response.status, seconds, trace_id)
            self._requests.write(line, failure, bug)
        # Their tracebacks hold this frame and the body, and it them: all would stay until the collector came.
        failure = bug = problem = None
        return answered

    async def _respond(
        self, head: RequestHead, body: bytes, identity: str, trace: RequestTrace | None
    ) -> Response:
        if head.method == "OPTIONS" and self._router.is_people_facing(head.path):
            methods = self._router.methods(head.path)
            headers = [("allow", methods), *self._cors.preflight_headers(head.headers, methods)]
            return Response(204, b"", headers)
        found: tuple[endpoints.Endpoint, Handler] = head.found
        endpoint, handler = found
        if endpoint.bodies:
            body = decompressed(head.headers, body, self._settings.api_max_body_bytes)
        return await handler(Request(identity, head.headers, head.query, body, trace))


def _database_url(settings: Settings) -> Callable[[], str]:
    configured = settings.database_url
    if configured is not None:
        return lambda: configured
    # Only the embedded server's address needs this import, which doubles a worker's time to start.
    from apex_pipelines.platform.postgres import embedded_url

    return lambda: embedded_url(settings)


def _clickhouse_url(settings: Settings) -> Callable[[], str]:
    configured = settings.clickhouse_url
    if configured is not None:
        return lambda: configured
    # As above: only the embedded warehouse's password needs this import.
    from apex_pipelines.platform.clickhouse import clickhouse_url

    return lambda: clickhouse_url(settings)
