"""Traces in OpenTelemetry's form, sent over OTLP/HTTP by a thread that nobody waits for.

Belongs here: names and attributes of spans, the exporter. Does not belong here: when something is traced.

Samplers, headers, timeouts and queue sizes are the SDK's own, set by OpenTelemetry's `OTEL_*` variables. When
the collector is away or slow, spans beyond the queue are dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apex_pipelines.platform.logging import mask_secrets
from ingest_api.request_body import RequestHeaders
from ingest_api.spool.group_commit import Commit
from ingest_api.tracing import Attributes

_STOP_SECONDS = 3.0  # what the last spans get at a stop; the API's own drain must not wait for a collector
_MESSAGE_CHARACTERS = 300
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class OtlpTracing:
    """One process's traces.

    Parameters
    ----------
    endpoint : str
        Address of the collector, to which ``/v1/traces`` is appended.
    service : str
        Its name in the traces, unless `OTEL_SERVICE_NAME` gives another.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        resource = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ingest_api")
        self._propagator = TraceContextTextMapPropagator()

    def begin_request(self, headers: RequestHeaders) -> OtlpRequest:
        """Trace a request, as a part of the client's trace when it names one."""
        names = ("traceparent", "tracestate")
        parent = self._propagator.extract({name: headers.get(name) or "" for name in names})
        return OtlpRequest(self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER))

    def committed(self, commit: Commit) -> None:
        """Trace a group commit: a part of its first request that is traced, linked from the others."""
        spans = [each.span for each in commit.origins if isinstance(each, OtlpRequest)]
        traced = [span for span in spans if span.get_span_context().trace_flags.sampled]
        if not traced:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            "spool.commit",
            context=set_span_in_context(traced[0]),
            start_time=ended - int(commit.seconds * 1e9),
            attributes={
                "apex.requests": len(commit.origins), "apex.rows": commit.rows, "apex.bytes": commit.size
            },
            links=[Link(other.get_span_context()) for other in traced[1:]],
        )  # fmt: skip
        span.end(ended)

    @contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Trace a block, also when it fails."""
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                # The SDK would tell the whole message, with whatever address or row is in it.
                span.set_status(StatusCode.ERROR, mask_secrets(str(error))[:_MESSAGE_CHARACTERS])
                raise

    def close(self) -> None:
        """Send what is left, as far as the collector takes it within seconds."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(_STOP_SECONDS)


class OtlpRequest:
    """The span of one request, named once its route is known."""

    def __init__(self, span: Span) -> None:
        self.span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self.span.get_span_context().trace_id)

    def end(self, method: str, route: str, status: int, request_id: str) -> None:
        # A method or an id may be anything that a client wrote.
        method = method if method in _METHODS else "_OTHER"
        self.span.update_name(f"{method} {route}")
        self.span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "apex.request_id": mask_secrets(request_id),
            }
        )
        if status >= 500:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
