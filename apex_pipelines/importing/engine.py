"""`apex import`: a file becomes events, and events go to the public API, each counted once.

Two passes bound the memory: the file is read into the resume file, grouped by customer; then each customer's
events are sent under a key of their own. Every confirmed batch is recorded, so a killed import goes on from
there and repeats at most what was under way, with the same event ids.

Does not belong here: how progress looks (the caller's `on_progress` shows it).
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import sqlalchemy as sa

from apex_pipelines.importing.delivery import Delivery
from apex_pipelines.importing.detection import detect_mapping
from apex_pipelines.importing.errors import ImportFailed, ImportInterrupted
from apex_pipelines.importing.events import BadRecord, map_record
from apex_pipelines.importing.mapping import Mapping, load_mapping
from apex_pipelines.importing.readers import BadLine, Source, open_source, records
from apex_pipelines.importing.state import ImportState, ReadingCounts, open_state
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.ingest_client import IngestError, RetryPolicy
from apex_pipelines.settings import Settings

_PROGRESS_EVERY_LINES = 2_000


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is. `reading` counts bytes of the file, `sending` counts events."""

    phase: Literal["reading", "sending"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, over all its runs when it was resumed.

    Attributes
    ----------
    lines, records, bad_lines : int
        Physical lines of the file, records that became events, and lines that could not.
    events : int
        Events made of the records; ``accepted + duplicates + rejected``, what the API answered to them.
    duplicates : int
        As the API answered. It may accept a repeat whose first has left its memory; the marts count it once.
    quantity_by_metric : dict
        Sums over all events in storage units (see the metric catalogue).
    resumed : bool
        Whether an earlier run had begun it.
    seconds : float
        Of this run.
    rejected_file : Path or None
        Every bad line and rejected event, with line number and reason; None when there were none.
    """

    file: Path
    mapping: str
    lines: int
    records: int
    bad_lines: int
    customers: int
    events: int
    accepted: int
    duplicates: int
    rejected: int
    events_by_metric: dict[str, int]
    quantity_by_metric: dict[str, int]
    first_event_at: str | None
    last_event_at: str | None
    requests: int
    retries: int
    resumed: bool
    seconds: float
    rejected_file: Path | None


def run_import(
    settings: Settings,
    path: Path | str,
    mapping: str | Path | None = None,
    historical: bool = False,
    *,
    clock: Clock,
    on_progress: Callable[[ImportProgress], None] | None = None,
    resume: bool = True,
    retry: RetryPolicy | None = None,
    concurrency: int = 32,
) -> ImportReport:
    """Import a file through the public API at `settings.api_url`.

    Parameters
    ----------
    mapping : str, Path or None
        Built-in name or TOML file; None finds the built-in mapping that fits the content.
    historical : bool
        Send under keys that may be late by any time, instead of 35 days at most.
    resume : bool
        Go on where an unfinished import of the same content and mapping stopped; False starts over.

    Raises
    ------
    UnreadableFile, MappingProblem
        If the file or the mapping can't be used. Nothing has been sent then.
    ImportInterrupted
        If it was stopped or the API went away. Running it again goes on.
    ImportFailed
        If the data folder or the database fails.
    """
    path = Path(path)
    started = time.monotonic()
    chosen = _choose_mapping(path, mapping)
    digest = _digest(path, chosen)
    report = on_progress or (lambda _progress: None)
    folder = settings.home_path / "imports"
    state_path = folder / f"{digest}.sqlite"
    with _clear_failures(state_path), open_state(state_path, resume=resume) as state:
        resumed = state.resumed
        if not resumed:
            with state.staging(), open_source(path) as source:
                state.finish_reading(_read(source, chosen, state, report))
        counts = state.reading_counts()
        engine = postgres.create_engine(settings)
        try:
            delivery = Delivery(
                settings, engine, state, chosen,
                label=f"import {digest}", historical=historical, clock=clock, retry=retry,
                concurrency=concurrency,
                on_confirmed=lambda done: report(ImportProgress("sending", done, counts.events)),
            )  # fmt: skip
            try:
                asyncio.run(delivery.run())
            except (KeyboardInterrupt, IngestError) as error:
                reason = str(error) or "stopped on request"
                confirmed = state.delivery_counts().confirmed
                raise ImportInterrupted(
                    f"{reason}. {confirmed:,} of {counts.events:,} events are confirmed and kept; "
                    "run the same command again to go on from there"
                ) from error
        finally:
            engine.dispose()
        rejected_file = state.write_rejected(folder / f"{path.stem}-{digest[:12]}.rejected.ndjson")
        delivered = state.delivery_counts()
        state.forget()
    return ImportReport(
        file=path,
        mapping=chosen.name,
        lines=counts.lines,
        records=counts.records,
        bad_lines=counts.bad_lines,
        customers=counts.customers,
        events=counts.events,
        accepted=delivered.accepted,
        duplicates=delivered.duplicates,
        rejected=delivered.rejected,
        events_by_metric=counts.events_by_metric,
        quantity_by_metric=counts.quantity_by_metric,
        first_event_at=counts.first_event_at,
        last_event_at=counts.last_event_at,
        requests=delivery.client_counts.requests,
        retries=delivery.client_counts.retries,
        resumed=resumed,
        seconds=time.monotonic() - started,
        rejected_file=rejected_file,
    )


def _choose_mapping(path: Path, mapping: str | Path | None) -> Mapping:
    with open_source(path) as source:
        return detect_mapping(source) if mapping is None else load_mapping(mapping)


def _digest(path: Path, mapping: Mapping) -> str:
    """Names one content under one mapping: any change of either makes it another import."""
    digest = hashlib.sha256(msgspec.json.encode(mapping))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


@contextmanager
def _clear_failures(state_path: Path) -> Iterator[None]:
    """Failures of the disk and the database as errors that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise ImportFailed(
            f"the resume file {state_path} can't be used ({error}); make room, or remove it to start over"
        ) from error
    except OSError as error:
        raise ImportFailed(
            f"the data folder can't be written: {error}; make room or set APEX_HOME"
        ) from error
    except postgres.PostgresNotRunning as error:
        raise ImportFailed(str(error)) from error
    except sa.exc.OperationalError as error:
        raise ImportFailed(
            f"the operational database does not answer ({error.orig}); see `apex status`, then run it again"
        ) from error


def _read(
    source: Source, mapping: Mapping, state: ImportState, report: Callable[[ImportProgress], None]
) -> ReadingCounts:
    counts = ReadingCounts()
    first = last = None
    for number, item in enumerate(records(source, mapping)):
        if number % _PROGRESS_EVERY_LINES == 0:
            report(ImportProgress("reading", source.position(), source.size))
        if item is None:
            continue
        if isinstance(item, BadLine):
            counts.bad_lines += 1
            state.reject_line(item)
            continue
        occurrence = state.occurrence(item.content)
        try:
            mapped = map_record(mapping, item, occurrence)
        except BadRecord as error:
            counts.bad_lines += 1
            state.reject_line(BadLine(item.line, str(error), item.content))
            continue
        counts.records += 1
        state.stage(mapped, item.line)
        counts.events += len(mapped.events)
        for made in mapped.events:
            metric = made.event.metric_type
            counts.events_by_metric[metric] = counts.events_by_metric.get(metric, 0) + 1
            counts.quantity_by_metric[metric] = counts.quantity_by_metric.get(metric, 0) + made.stored
        first = mapped.at if first is None else min(first, mapped.at)
        last = mapped.at if last is None else max(last, mapped.at)
    counts.lines = source.line_count
    counts.first_event_at = first.isoformat() if first else None
    counts.last_event_at = last.isoformat() if last else None
    report(ImportProgress("reading", source.size, source.size))
    return counts
