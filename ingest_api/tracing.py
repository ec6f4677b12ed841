"""Traces of requests, group commits and loads: the hooks, and whether there are any.

Belongs here: what the API and the loader tell about themselves. Does not belong here: OpenTelemetry (`otlp`),
which is imported only where an endpoint is set.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from apex_pipelines.settings import Settings
from ingest_api.request_body import RequestHeaders
from ingest_api.spool.group_commit import Commit

Attributes = dict[str, str | int]


class RequestTrace(Protocol):
    """A request that is being answered."""

    @property
    def trace_id(self) -> str:
        """32 hex digits, by which the trace is found."""

    def end(self, method: str, route: str, status: int, request_id: str) -> None: ...


class SpanMaker(Protocol):
    """Traces a block: ``with span("name", {...}):``, inside the block that is being traced around it."""

    def __call__(self, name: str, attributes: Attributes, /) -> AbstractContextManager[object]: ...


class Tracing(Protocol):
    """Where one process's traces go. Nothing of it waits for the network or raises."""

    def begin_request(self, headers: RequestHeaders) -> RequestTrace: ...

    def committed(self, commit: Commit) -> None: ...

    def span(self, name: str, attributes: Attributes, /) -> AbstractContextManager[object]: ...

    def close(self) -> None: ...


def no_span(_name: str, _attributes: Attributes) -> AbstractContextManager[object]:
    """What stands for `Tracing.span` where nothing is traced."""
    return nullcontext()


def start_tracing(settings: Settings, service: str) -> Tracing | None:
    """Start to send traces as `service`; None when no endpoint is set."""
    if settings.otlp_endpoint is None:
        return None
    from ingest_api.otlp import OtlpTracing

    return OtlpTracing(settings.otlp_endpoint, service)
