"""Traces: what a collector receives over OTLP, and that nobody suffers from one that is away or slow."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pydantic
import pytest
from clickhouse_connect.driver.client import Client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from apex_pipelines.metering.landing import wait_until_landed
from apex_pipelines.settings import Settings
from tests.conftest import free_port
from tests.ingest.conftest import Account, Api, LoaderProcess, event

# As an operator would shorten the way of a span; the default is 5 s.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_HEADERS": "x-collector-key=of-the-collector"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@dataclass
class Collector:
    """A real HTTP server that takes traces; `hold` keeps its answers back until it is set."""

    port: int = 0
    spans: list[tuple[str, Span]] = field(default_factory=list)
    received: bytes = b""
    keys: set[str | None] = field(default_factory=set)
    hold: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, headers: Any, body: bytes) -> None:
        assert path == "/v1/traces"
        data = gzip.decompress(body) if headers["content-encoding"] == "gzip" else body
        self.received += data
        self.keys.add(headers["x-collector-key"])
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        """The spans of that name, once there are `count`."""
        deadline = time.monotonic() + 20
        while len(found := [span for _, span in list(self.spans) if span.name == name]) < count:
            assert time.monotonic() < deadline, sorted({span.name for _, span in self.spans})
            time.sleep(0.05)
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    here = Collector()
    here.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            here.hold.wait(60)
            here.take(self.path, self.headers, body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    here.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield here
    here.hold.set()
    server.shutdown()
    thread.join(10)
    server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_traced_from_the_clients_span_to_its_commit(
    new_api: Callable[..., Api], account: Account, collector: Collector
) -> None:
    api = new_api(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, APEX_LOG_FORMAT="json", **QUICK)
    headers = {**account.bearer, "traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "req-1"}
    with httpx.Client(base_url=api.url, headers=headers) as http:
        batch = [event(event_id=f"evt-{number}") for number in range(7)]
        assert http.post("/api/v1/usage/batch", json=batch).status_code == 200
        assert http.post("/api/usage/track", json=event(quantity="x")).status_code == 422
        assert http.request("PROPFIND", "/coffee").status_code == 404
    (request,) = collector.wait_for("POST /api/usage/batch")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, CALLER)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/api/usage/batch",
        "http.response.status_code": 200,
        "apex.request_id": "req-1",
    }
    (commit,) = collector.wait_for("spool.commit")
    assert (commit.trace_id.hex(), commit.parent_span_id) == (TRACE, request.span_id)
    told = attributes(commit)
    assert (told["apex.requests"], told["apex.rows"]) == (1, 7)
    began, ended = commit.start_time_unix_nano, commit.end_time_unix_nano
    assert request.start_time_unix_nano <= began < ended <= time.time_ns()
    (refused,) = collector.wait_for("POST /api/usage/track")
    assert attributes(refused)["http.response.status_code"] == 422
    collector.wait_for("_OTHER none")
    assert {service for service, _ in collector.spans} == {"apex-ingest-api"}
    assert collector.keys == {"of-the-collector"}
    api.stop()
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    assert {line["trace_id"] for line in lines if "request_id" in line} == {TRACE}


def test_requests_that_share_a_commit_are_linked_from_it(
    new_api: Callable[..., Api], account: Account, collector: Collector
) -> None:
    api = new_api(OTEL_EXPORTER_OTLP_ENDPOINT=f"{collector.url}/", OTEL_SERVICE_NAME="mine", **QUICK)

    def send(number: int) -> None:
        with httpx.Client(base_url=api.url, headers=account.bearer) as http:
            for turn in range(10):
                one = event(event_id=f"evt-{number}-{turn}")
                garbage = {"traceparent": f"00-{'0' * 32}-x", "tracestate": "=" * 200}
                assert http.post("/api/usage/track", json=one, headers=garbage).status_code == 200

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(16)))
    requests = collector.wait_for("POST /api/usage/track", 160)
    deadline = time.monotonic() + 20
    while True:
        commits = collector.wait_for("spool.commit")
        if sum(int(attributes(commit)["apex.requests"]) for commit in commits) == 160:
            break
        assert time.monotonic() < deadline
    assert len({request.trace_id for request in requests}) == 160  # garbage starts a trace of its own
    ids = {request.span_id for request in requests}
    told = [span_id for commit in commits for span_id in
            (commit.parent_span_id, *(link.span_id for link in commit.links))]  # fmt: skip
    assert len(commits) < 160
    assert (len(told), set(told)) == (160, ids)
    assert {service for service, _ in collector.spans} == {"mine"}


def test_the_loader_traces_its_inserts_and_tells_of_failures_without_a_password(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    collector: Collector,
    settings: Settings,
) -> None:
    api = new_api(APEX_OTLP_ENDPOINT=collector.url, **QUICK)
    batch = [event(event_id=f"evt-{number}") for number in range(5)]
    answer = httpx.post(
        f"{api.url}/api/usage/batch?api_key={account.key}",
        json={"events": batch, "api_key": account.key},
        headers={**account.bearer, "x-request-id": account.key},
    )
    assert answer.status_code == 200
    away = f"http://default:hunter2@127.0.0.1:{free_port()}"
    lost = new_loader(APEX_OTLP_ENDPOINT=collector.url, APEX_CLICKHOUSE_URL=away, **QUICK)
    failed = collector.wait_for("land segments")[0]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    lost.stop()
    new_loader(APEX_OTLP_ENDPOINT=collector.url, **QUICK)
    wait_until_landed(settings.spool_dir, 30)
    insert = collector.wait_for("INSERT raw.usage_events")[-1]
    assert (attributes(insert)["apex.rows"], attributes(insert)["db.system.name"]) == (5, "clickhouse")
    landing = {span.span_id: span for span in collector.wait_for("land segments")}
    deadline = time.monotonic() + 10
    while insert.parent_span_id not in landing:
        assert time.monotonic() < deadline
        landing = {span.span_id: span for span in collector.wait_for("land segments")}
    assert landing[insert.parent_span_id].status.code != Status.STATUS_CODE_ERROR
    collector.wait_for("POST /api/usage/batch")
    assert account.key.encode() not in collector.received
    assert b"hunter2" not in collector.received


@pytest.mark.parametrize("collector_is", ["away", "silent"])
@pytest.mark.measures
def test_a_collector_that_does_not_answer_harms_nobody(
    collector_is: str, new_api: Callable[..., Api], account: Account, collector: Collector
) -> None:
    collector.hold.clear()
    url = collector.url if collector_is == "silent" else f"http://127.0.0.1:{free_port()}"
    api = new_api(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_MAX_QUEUE_SIZE="64", **QUICK,
                  OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32", APEX_LOG_FORMAT="json")  # fmt: skip
    times = []
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        for number in range(300):  # far more than the queue holds
            began = time.perf_counter()
            answer = http.post("/api/usage/track", json=event(event_id=f"evt-{number}"))
            times.append(time.perf_counter() - began)
            assert answer.status_code == 200
    assert max(times) < 5  # an export waits for 10 s
    began = time.perf_counter()
    api.stop()
    assert time.perf_counter() - began < 10
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    assert any("dropping" in line["event"] for line in lines)
    assert len(lines) < 30


def test_nothing_of_opentelemetry_is_imported_unless_an_endpoint_is_set(
    process_environment: Callable[..., dict[str, str]],
) -> None:
    script = (
        "import sys, ingest_api.app, ingest_api.loader\n"
        "from apex_pipelines.settings import Settings\n"
        "from ingest_api.tracing import start_tracing\n"
        "print(start_tracing(Settings(), 'x'), [name for name in sys.modules if 'opentelemetry' in name])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=process_environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout == "None []\n"


def test_an_endpoint_that_is_no_address_is_refused_at_the_start() -> None:
    for wrong in ("localhost:4318", "grpc://collector:4317"):
        with pytest.raises(pydantic.ValidationError):
            Settings.model_validate({"apex_otlp_endpoint": wrong})
