"""A loader inside the test, and what it has stored."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from clickhouse_connect.driver.client import Client

from apex_pipelines.settings import Settings
from ingest_api import loader
from ingest_api.spool.segments import SEALED, list_segments


@contextlib.contextmanager
def loading(settings: Settings) -> Iterator[None]:
    """A loader in a thread; what it raises comes out at the end."""
    stop = threading.Event()
    failures: list[Exception] = []

    def body() -> None:
        try:
            loader.run(settings, stop)
        except Exception as error:  # noqa: BLE001 - handed to the test below
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not failures, failures


def wait_until_empty(spool_dir: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while list_segments(spool_dir, SEALED):
        assert time.monotonic() < deadline, "the spool was not emptied in time"
        time.sleep(0.02)


def rows(warehouse: Client) -> list[tuple[object, ...]]:
    query = "select event_id, batch_id, batch_row from raw.usage_events order by batch_id, batch_row"
    return [tuple(row) for row in warehouse.query(query).result_rows]
