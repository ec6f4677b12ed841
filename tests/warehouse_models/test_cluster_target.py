"""What the target `cluster` would tell a cluster, recorded by a stand-in that runs it on the embedded one."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.conftest import free_port
from tests.warehouse_models.conftest import AS_OF, Models

CLUSTER = re.compile(r'\bon\s+cluster\s+"?apex"?', re.IGNORECASE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Statements about tables and databases. Deletes and alters are handed on by a replicated table itself.
OF_THE_CLUSTER = ("create", "drop", "exchange", "rename", "truncate", "kill", "system")


def for_one_server(statement: str) -> str:
    """The same statement without what only a cluster knows."""
    statement = re.sub(r'cluster(AllReplicas)?\("apex", (system\.\w+)\)', r"\2", statement)
    statement = re.sub(r"\bReplicated(\w*MergeTree)", r"\1", statement).replace("_shard_num", "1")
    return (
        "select 1"
        if statement.lower().lstrip().startswith("system sync replica")
        else CLUSTER.sub("", statement)
    )


@pytest.fixture
def recorded(models: Models) -> Iterator[tuple[Models, list[str]]]:
    """The models on a stand-in for a cluster, and the statements that it was given."""
    told: list[str] = []
    upstream = httpx.Client(base_url=f"http://127.0.0.1:{models.settings.warehouse_port}", timeout=60)

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            target = urlsplit(self.path)
            parameters = {name: values[0] for name, values in parse_qs(target.query).items()}
            statement = COMMENT.sub("", parameters.get("query") or body.decode(errors="replace")).strip()
            told.append(statement)
            if "query" in parameters:
                parameters["query"] = for_one_server(parameters["query"])
            elif not statement.lower().startswith("insert"):
                body = for_one_server(body.decode()).encode()
            skipped = ("host", "content-length", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            answer = upstream.stream(
                "POST", f"{target.path}?{urlencode(parameters)}", content=body, headers=headers
            )
            with answer as response:
                content = b"".join(response.iter_raw())
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), Recorder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield (
        dataclasses.replace(models, settings=models.settings.model_copy(update={"warehouse_port": port})),
        told,
    )
    server.shutdown()
    server.server_close()
    upstream.close()


def test_every_statement_goes_to_the_whole_cluster_and_every_table_is_replicated(
    recorded: tuple[Models, list[str]],
) -> None:
    models, told = recorded
    chosen = ["metric_catalogue", "stg_customers", "stg_usage_events", "int_usage_events", "usage_daily"]
    chosen += ["int_customer_days", "int_customer_life", "onboarding"]
    # Made, and made again: the second time tables are swapped and rows replaced.
    for _ in range(2):
        options = ["--resource-type", "model", "--resource-type", "seed", "--target", "cluster"]
        done = models.start("build", *options, "--select", *chosen, as_of=AS_OF)
        output, _errors = done.communicate(timeout=200)
        assert done.returncode == 0, output[-3000:]

    about_tables = [statement for statement in told if statement.lower().startswith(OF_THE_CLUSTER)]
    begun_with = {statement.split()[0].lower() for statement in about_tables}
    assert {"create", "drop", "kill"} <= begun_with
    assert begun_with & {"exchange", "rename"}
    local = [s for s in about_tables if not CLUSTER.search(s) and "temporary" not in s.lower()]
    assert not local
    engines = [
        found for s in about_tables for found in re.findall(r"\bengine\s*=?\s*(\w+)", s, re.IGNORECASE)
    ]
    assert engines
    assert set(engines) == {"ReplicatedMergeTree"}
