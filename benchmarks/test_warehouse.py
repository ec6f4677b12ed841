"""What the HTTP front costs against the same engine in the same process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

EXPORT = "select number, toString(number) from numbers(2000000)"
IN_PROCESS = """
import json, sys, statistics, time
from chdb import connect
connection = connect(sys.argv[1])
def timed(query, n):
    found = []
    for _ in range(n):
        began = time.perf_counter()
        connection.query(query, "Native")
        found.append(time.perf_counter() - began)
    return statistics.median(found)
print(json.dumps({
    "select 1": timed("select 1", 200),
    "export": timed(sys.argv[2], 3),
}))
connection.close()
"""


def median_seconds(client: Client, query: str, times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        with client.raw_stream(query, fmt="Native") as answer:
            while answer.read(1 << 20):
                pass
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def test_front_against_in_process(warehouse: Client, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", IN_PROCESS, str(tmp_path / "engine"), EXPORT]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    alone = json.loads(done.stdout)
    over_http = {
        "select 1": median_seconds(warehouse, "select 1", 200),
        "export": median_seconds(warehouse, EXPORT, 3),
    }
    print("\nmedian ms, in process and over HTTP:")
    for name, seconds in over_http.items():
        ratio = alone[name] / seconds
        print(f"  {name:10} {alone[name] * 1e3:9.2f} {seconds * 1e3:9.2f}   rate kept {ratio:.2f}")
    assert over_http["select 1"] < 1
