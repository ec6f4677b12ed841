"""What of a simulation the API has confirmed, in a small SQLite file that its owner alone can read.

Belongs here: one row for each confirmed chunk (whole days of one customer) with its tally. The tallies add up
to what the warehouse must hold, so a repeated run knows the totals without generating anything again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import msgspec

from apex_pipelines.platform.ingest_client import EventResult
from apex_pipelines.sandbox.simulator.population import Simulation, SimulationError
from apex_pipelines.sandbox.simulator.telemetry import SentEvent

_SCHEMA = """
create table simulation (parameters text not null);
create table chunks (
    customer integer not null, first_day text not null, end_day text not null, tally text not null,
    primary key (customer, end_day)
) without rowid;
"""


@dataclass(slots=True)
class Tally:
    """Counts of events over some chunks; quantities in storage units, and only of what counts.

    Attributes
    ----------
    by_kind : dict
        Events sent, by `Kind`.
    answers : dict
        What the API said, by status.
    """

    by_kind: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    events_by_metric: dict[str, int] = field(default_factory=dict)
    quantity_by_metric: dict[str, int] = field(default_factory=dict)

    def add(self, sent: SentEvent) -> None:
        """Count one event that is sent."""
        _increase(self.by_kind, sent.kind, 1)
        if sent.kind.counts:
            _increase(self.events_by_metric, sent.event.metric_type, 1)
            _increase(self.quantity_by_metric, sent.event.metric_type, sent.stored)

    def add_answers(self, results: Iterable[EventResult]) -> None:
        """Count the API's answers."""
        for result in results:
            _increase(self.answers, result.status, 1)

    def merge(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name in ("by_kind", "answers", "events_by_metric", "quantity_by_metric"):
            for key, value in getattr(other, name).items():
                _increase(getattr(self, name), key, value)


def _increase(counts: dict[str, int], key: str, by: int) -> None:
    counts[str(key)] = counts.get(str(key), 0) + by


class SimulationState:
    """The file, opened. Made by `open_state`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def confirmed_until(self) -> dict[int, date]:
        """For each customer, the day before which everything is confirmed."""
        rows = self._db.execute("select customer, max(end_day) from chunks group by customer")
        return {int(customer): date.fromisoformat(day) for customer, day in rows}

    def confirm(self, customer: int, first_day: date, end_day: date, tally: Tally) -> None:
        """Record that the days from `first_day` to the day before `end_day` are confirmed."""
        self._db.execute(
            "insert or replace into chunks values (?, ?, ?, ?)",
            (
                customer,
                first_day.isoformat(),
                end_day.isoformat(),
                msgspec.json.encode(asdict(tally)).decode(),
            ),
        )

    def tally(self) -> Tally:
        """Everything confirmed so far."""
        total = Tally()
        for (text,) in self._db.execute("select tally from chunks"):
            total.merge(msgspec.json.decode(text, type=Tally))
        return total

    def check_parameters(self, simulation: Simulation) -> None:
        """Remember the simulation, or compare it with the one remembered.

        Raises
        ------
        SimulationError
            If the file belongs to a simulation with other parameters: its events would have the same ids.
        """
        given = msgspec.json.encode(asdict(simulation)).decode()
        stored = _stored_parameters(self._db)
        if stored is None:
            self._db.execute("insert into simulation values (?)", (given,))
        elif stored != given:
            raise SimulationError(
                f"this data folder holds the simulation {stored}; {given} would give other events the same "
                "ids. Take another seed, another APEX_HOME, or those parameters"
            )


def state_path(home: Path, seed: int) -> Path:
    """Where a simulation's state is kept."""
    return home / "simulator" / f"{seed}.sqlite"


def stored_simulation(home: Path, seed: int) -> Simulation | None:
    """The simulation that this data folder holds for a seed, to go on with it; None if there is none."""
    path = state_path(home, seed)
    if not path.exists():
        return None
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        stored = _stored_parameters(connection)
    except sqlite3.OperationalError:
        return None  # killed before its tables were made
    finally:
        connection.close()
    return None if stored is None else msgspec.json.decode(stored, type=Simulation)


def _stored_parameters(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("select parameters from simulation").fetchone()
    return None if row is None else str(row[0])


@contextmanager
def open_state(home: Path, simulation: Simulation) -> Iterator[SimulationState]:
    """Open the state of a simulation, made if there is none.

    Raises
    ------
    SimulationError
        If the file belongs to other parameters, or can't be used.
    """
    path = state_path(home, simulation.seed)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript("pragma journal_mode = wal; pragma synchronous = normal;")
        if not connection.execute("select 1 from sqlite_master where name = 'chunks'").fetchone():
            connection.executescript(f"begin; {_SCHEMA} commit;")
        state = SimulationState(connection)
        state.check_parameters(simulation)
        yield state
    except sqlite3.Error as error:
        raise SimulationError(
            f"the simulation's state {path} can't be used: {error}; make room or remove it"
        ) from error
    finally:
        connection.close()
