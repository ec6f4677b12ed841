"""ClickHouse's own client for Node against the warehouse: what a service written in Node relies on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.node_packages import installed
from tests.warehouse.conftest import PASSWORD, Front

CLIENT = "@clickhouse/client@1.23.1"
SCRIPT = Path(__file__).parent / "node" / "client.mjs"

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def client_folder() -> Path:
    """A folder with the client in it."""
    return installed(CLIENT)


@pytest.fixture(scope="module")
def results(front: Front, client_folder: Path) -> Results:
    """What the script saw, by the names of its tasks."""
    environment = {
        **os.environ,
        "CLIENT_FOLDER": str(client_folder),
        "WAREHOUSE_URL": front.url,
        "WAREHOUSE_PASSWORD": PASSWORD,
    }
    script = subprocess.run(
        ["node", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert script.returncode == 0, script.stderr
    results: Results = json.loads(script.stdout)
    return results


def test_a_ping_tells_whether_somebody_is_there(results: Results) -> None:
    assert results["ping"] == {"up": True, "selected": True, "down": False}


def test_a_select_gives_rows_and_types(results: Results) -> None:
    found = results["selects_json"]
    assert (found["count"], found["types"]) == (3, ["UInt64", "String"])
    assert [(int(row["n"]), row["s"]) for row in found["data"]] == [(0, "0"), (1, "1"), (2, "2")]
    assert found["query_id"]


def test_an_insert_from_a_stream_keeps_every_row_and_says_so(results: Results) -> None:
    found = results["inserts_from_a_stream"]
    assert (found["written"], int(found["count"])) == ("200000", 200_000)
    assert (int(found["sum"]), found["text"]) == (sum(range(200_000)), 1)


def test_a_million_rows_are_streamed(results: Results) -> None:
    assert results["streams_a_million_rows"] == {"count": 1_000_000, "sum": sum(range(1_000_000))}


def test_an_aborted_query_ends_in_the_engine(results: Results) -> None:
    assert results["aborts_a_query"] == {"before": 1, "after": 0, "outcome": "The user aborted a request."}


def test_requests_and_answers_are_compressed_and_whole(results: Results) -> None:
    found = results["compresses_both_ways"]
    assert (found["written"], found["encoding"], found["count"]) == ("200000", "gzip", 200_000)
    assert found["last"] == {"id": 199_999, "name": 'ñame "199999"\n'}


def test_query_ids_and_sessions_are_the_clients_own(results: Results) -> None:
    assert results["commands_and_sessions"] == {"same_id": True, "sum": 3, "outside": "UNKNOWN_TABLE"}


def test_errors_have_their_code_and_type(results: Results) -> None:
    found = results["errors_have_code_and_type"]
    assert {name: (error["name"], error["code"], error["type"]) for name, error in found.items()} == {
        "table": ("ClickHouseError", "60", "UNKNOWN_TABLE"),
        "syntax": ("ClickHouseError", "62", "SYNTAX_ERROR"),
        "password": ("ClickHouseError", "516", "AUTHENTICATION_FAILED"),
        "insert": ("ClickHouseError", "27", "CANNOT_PARSE_INPUT_ASSERTION_FAILED"),
    }
    assert "no_such_table" in found["table"]["message"]


def test_an_error_after_the_first_rows_is_an_error_too(results: Results) -> None:
    found = results["errors_after_the_first_rows"]
    assert 0 < found["count"] <= 300_000
    assert (found["code"], found["type"]) == ("395", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO")
