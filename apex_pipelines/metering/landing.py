"""Telemetry on its way from the spool to the warehouse: what still waits, what has landed.

Belongs here: counts at the border between the ingest API and the models. Does not belong here: loading
(`ingest_api/loader.py`) or deciding what counts once (dbt).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clickhouse_connect.driver.client import Client


class SpoolNotDrained(RuntimeError):
    """What the API acknowledged has not reached the warehouse in the time given."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What `raw.usage_events` holds.

    Attributes
    ----------
    rows : int
        Events answered as accepted; repeats that the API no longer knew are among them.
    counted : int
        Events that count, each `event_id` once a customer; as of the last dbt run.
    dead_letters : int
        Letters that no replay has landed yet.
    last_loaded_at : datetime or None
        When the newest row was loaded, UTC; None for an empty table.
    """

    rows: int
    counted: int
    dead_letters: int
    last_loaded_at: datetime | None


def waiting_files(spool_dir: Path) -> list[Path]:
    """Spool files with acknowledged events that are not loaded yet."""
    return [path for suffix in ("*.seg", "*.open") for path in spool_dir.glob(suffix) if _size(path) > 0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wait_until_landed(
    spool_dir: Path, seconds: float, *, on_progress: Callable[[int], None] | None = None, poll: float = 0.1
) -> None:
    """Wait until everything that was in the spool when this was called has been loaded.

    Parameters
    ----------
    on_progress : callable, optional
        Given the number of files that still wait, at each look.

    Raises
    ------
    SpoolNotDrained
        If some of it still waits after `seconds`.
    """
    # An open file is loaded under its sealed name, so files are told apart by their stem.
    wanted = {path.stem for path in waiting_files(spool_dir)}
    deadline = time.monotonic() + seconds
    while wanted := wanted & {path.stem for path in waiting_files(spool_dir)}:
        if on_progress is not None:
            on_progress(len(wanted))
        if time.monotonic() > deadline:
            raise SpoolNotDrained(
                f"{len(wanted)} spool files in {spool_dir} were not loaded within {seconds:.0f} s; "
                "see whether the loader and ClickHouse run (`apex status`)"
            )
        time.sleep(poll)


def landed(client: Client) -> Landed:
    """Counts of what has landed, from table metadata; costs the same whatever the size of history."""
    rows: dict[str, int | None] = {
        str(name): count
        for name, count in client.query(
            "select concat(database, '.', name), total_rows from system.tables "
            "where (database, name) in (('raw', 'usage_events'), ('intermediate', 'int_usage_events'))"
        ).result_rows
    }
    # Few rows at any time, unlike the events.
    dead = client.query("select count() from raw.usage_dead_letters_open").result_rows[0][0]
    newest = client.query("select max(loaded_at) from raw.usage_events").result_rows[0][0]
    return Landed(
        rows=int(rows.get("raw.usage_events") or 0),
        counted=int(rows.get("intermediate.int_usage_events") or 0),
        dead_letters=int(dead),
        last_loaded_at=newest if rows.get("raw.usage_events") else None,
    )


def uncounted_since(client: Client) -> bool:
    """Whether events have landed that the models have not counted yet; true before the first run."""
    marks = client.query(
        "select count() from system.tables where database = 'intermediate' and name = 'model_watermarks'"
    ).result_rows[0][0]
    if not marks:
        return True
    newest, counted = client.query(
        "select (select max(loaded_at) from raw.usage_events), (select max(watermark) "
        "from intermediate.model_watermarks where model = 'int_usage_events' and state = 'stored')"
    ).result_rows[0]
    return counted is None or bool(newest > counted)


def repeated_rows(client: Client, since: datetime) -> int:
    """Rows loaded since `since` whose (batch_id, batch_row) stands there already; zero when all is right."""
    return int(
        client.query(
            "select count() - uniqExact(batch_id, batch_row) from raw.usage_events "
            "where loaded_at >= {since:DateTime64(6)}",
            parameters={"since": since},
        ).result_rows[0][0]
    )
