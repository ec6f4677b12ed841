"""Loading dead letters again, through the loader's own insert path, each row once.

Belongs here: the order of the steps of a replay. Does not belong here: SQL (`dead_letters`), how rows are
inserted (`landing`).

A letter's rows keep their names (`batch_id`, `batch_row`). Before anything is inserted, what stands in the
table already is looked up; a letter is settled only when all of its rows were found there. So a replay that
was killed at any point is simply repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.settings import Settings
from ingest_api.dead_letters import DeadLetters, LetterName, NoSuchLetter, OpenLetter, Outcome
from ingest_api.landing import Landing, LandingIncomplete
from ingest_api.raw_events import Batch, RawEvents
from ingest_api.spool.segments import OPEN, SEALED

# All replays share it, so that each waits for an insert that another one's death left running.
_ORIGIN = "dead-letter-replay"
_MAX_BYTES_PER_STEP = 32 * 1024 * 1024
_POLL_SECONDS = 0.1


class ReplayRunning(RuntimeError):
    """Another replay runs on this data folder."""


@dataclass(slots=True)
class ReplayReport:
    """How a replay ended: letters whose rows all stand in the table, that failed again, that were left alone.

    Attributes
    ----------
    waiting : list of LetterName
        The loader is not done with their segment yet.
    """

    landed: list[LetterName] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    waiting: list[LetterName] = field(default_factory=list)

    @property
    def done(self) -> int:
        return len(self.landed) + len(self.failed) + len(self.waiting)


def replay(
    settings: Settings,
    *,
    names: Sequence[LetterName] | None = None,
    reason: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> ReplayReport:
    """Load open dead letters again: these `names`, or all whose reason contains `reason`.

    Parameters
    ----------
    on_progress : callable, optional
        Given letters done and letters in all, after each step.

    Raises
    ------
    NoSuchLetter
        If one of `names` is not open; nothing has been done then.
    ReplayRunning
        If another replay runs.
    LandingIncomplete
        If rows that were inserted can't be found; repeat the replay.
    """
    settings.spool_dir.mkdir(parents=True, exist_ok=True)
    with _only_replay(settings.spool_dir):
        table = RawEvents(settings, _ORIGIN)
        try:
            letters = DeadLetters(lambda: table.client)
            chosen = _choose(letters.open(reason), names)
            landing = Landing(table, threading.Event(), _POLL_SECONDS)
            report = ReplayReport()
            for step in _steps(chosen, settings.loader_max_rows_per_insert):
                _replay_step(settings.spool_dir, letters, landing, step, report)
                if on_progress is not None:
                    on_progress(report.done, len(chosen))
            return report
        finally:
            table.disconnect()


def _choose(waiting: list[OpenLetter], names: Sequence[LetterName] | None) -> list[OpenLetter]:
    if names is None:
        return waiting
    by_name = {letter.name: letter for letter in waiting}
    unknown = [str(name) for name in names if name not in by_name]
    if unknown:
        raise NoSuchLetter(
            f"there is no open dead letter {', '.join(unknown)}; `apex ingest dead-letters list` shows them"
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _steps(letters: Sequence[OpenLetter], max_rows: int) -> Iterator[list[LetterName]]:
    """Letters that fit into one insert together."""
    step: list[LetterName] = []
    rows = size = 0
    for letter in letters:
        if step and (rows + letter.row_count > max_rows or size + letter.size > _MAX_BYTES_PER_STEP):
            yield step
            step, rows, size = [], 0, 0
        step.append(letter.name)
        rows += letter.row_count
        size += letter.size
    if step:
        yield step


def _replay_step(
    spool_dir: Path, letters: DeadLetters, landing: Landing, step: list[LetterName], report: ReplayReport
) -> None:
    in_spool = [name for name in step if _is_in_spool(spool_dir, name.batch_id)]
    report.waiting += in_spool
    reasons: dict[LetterName, str] = {}
    events: dict[LetterName, list[AcceptedEvent]] = {}
    for letter in letters.whole([name for name in step if name not in set(in_spool)]):
        try:
            events[letter.name] = letter.events()
        except ValueError as error:
            reasons[letter.name] = f"{letter.letter.row_count} rows can't be decoded: {error}"
    batches = _batches(events)
    names = [batch.batch_id for batch in batches]
    missing = landing.missing(batches, set(names))
    refused = (
        {(row.batch_id, row.batch_row): row.reason for row in landing.insert(missing)} if missing else {}
    )
    for name, rows in events.items():
        bad = [refused[key] for key in _row_names(name, len(rows)) if key in refused]
        if bad:
            reasons[name] = bad[0] if len(rows) == 1 else f"{len(bad)} of {len(rows)} rows refused: {bad[0]}"
    lost = [
        f"{batch.batch_id}:{row}"
        for batch in landing.absent(batches, names)
        for row in batch.rows
        if (batch.batch_id, row) not in refused
    ]
    if lost:
        raise LandingIncomplete(f"rows {', '.join(lost[:5])} were inserted and are not in raw.usage_events")
    outcomes = [Outcome(name, reasons.get(name, "")) for name in (*events, *(reasons.keys() - events.keys()))]
    letters.record(outcomes)
    report.landed += [outcome.name for outcome in outcomes if outcome.landed]
    report.failed += [outcome for outcome in outcomes if not outcome.landed]


def _batches(events: dict[LetterName, list[AcceptedEvent]]) -> list[Batch]:
    """The rows of all letters by batch, each row once."""
    by_batch: dict[str, dict[int, AcceptedEvent]] = {}
    for name, rows in events.items():
        batch = by_batch.setdefault(name.batch_id, {})
        for number, event in enumerate(rows, name.batch_row):
            batch.setdefault(number, event)
    return [Batch(batch_id, list(rows), list(rows.values())) for batch_id, rows in by_batch.items()]


def _row_names(name: LetterName, count: int) -> Iterator[tuple[str, int]]:
    return ((name.batch_id, name.batch_row + index) for index in range(count))


def _is_in_spool(spool_dir: Path, batch_id: str) -> bool:
    """Whether the loader may still insert rows of this batch, which must not be done twice at once."""
    return any((spool_dir / f"{batch_id}{suffix}").exists() for suffix in (OPEN, SEALED))


@contextlib.contextmanager
def _only_replay(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "replay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReplayRunning("another replay of dead letters runs; wait until it is done") from error
        yield
    finally:
        os.close(descriptor)
