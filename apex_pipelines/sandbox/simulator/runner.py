"""Running a simulation: accounts into the operational tables, telemetry through the public API.

Belongs here: what is sent when, under which keys, and what is confirmed. A killed run goes on where it
stopped: confirmed days are not sent again, and what was under way is repeated with the same event ids.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time

import sqlalchemy as sa

from apex_pipelines.customers.keys import issue_keys, revoke_keys_labelled
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.ingest_client import ClientCounts, IngestClient, IngestError, RetryPolicy
from apex_pipelines.sandbox.simulator.accounts import AccountCounts, customer_id, sync_accounts
from apex_pipelines.sandbox.simulator.life import Life, live
from apex_pipelines.sandbox.simulator.population import Simulation, population
from apex_pipelines.sandbox.simulator.state import SimulationState, Tally, open_state
from apex_pipelines.sandbox.simulator.telemetry import MAX_BEHIND_DAYS, Kind, SentEvent, deliveries
from apex_pipelines.settings import Settings

_KEY_LIFE = timedelta(days=1)


class SimulationInterrupted(RuntimeError):
    """The simulation stopped on its way; what is confirmed is kept, and running it again goes on."""


@dataclass(frozen=True, slots=True)
class SimulationProgress:
    """How far a run is, in customers whose telemetry is confirmed."""

    customers_done: int
    customers: int
    events_sent: int


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What the simulation has sent, over all runs, and what the warehouse must therefore hold.

    Attributes
    ----------
    generated : int
        Different events; each must count exactly once.
    sent : int
        With the repeats that the simulation makes on purpose; ``generated + sum(repeats.values())``.
    acknowledged : int
        Events to which the API answered accepted or duplicate; equal to `sent` when none was rejected.
    answered_duplicate : int
        As the API answered; it may accept a repeat, which the marts then count once.
    repeats : dict
        Repeats sent, by kind: with the same timestamp, or with another.
    expected_quantity : dict
        Exact totals per metric in storage units, each event counted once and corrections subtracted.
    expected_events : dict
        Events per metric, each once, corrections included.
    sent_by_this_run : int
        0 when everything had been confirmed before.
    seconds : float
        Of this run.
    """

    simulation: Simulation
    accounts: AccountCounts
    causes_of_leaving: dict[str, int]
    generated: int
    sent: int
    acknowledged: int
    rejected: int
    answered_duplicate: int
    late: int
    corrections: int
    repeats: dict[str, int]
    expected_events: dict[str, int]
    expected_quantity: dict[str, int]
    sent_by_this_run: int
    requests: int
    retries: int
    seconds: float


@dataclass(slots=True)
class _Chunk:
    """Whole days of one customer, as many as fit into a request."""

    first_day: date
    end_day: date
    events: list[SentEvent] = field(default_factory=list)


def run_simulation(
    settings: Settings,
    engine: sa.Engine,
    simulation: Simulation,
    clock: Clock,
    on_progress: Callable[[SimulationProgress], None] | None = None,
    *,
    retry: RetryPolicy | None = None,
    concurrency: int = 8,
) -> SimulationReport:
    """Bring a simulation up to the clock's today, or its end if that is earlier, through `settings.api_url`.

    With the clock at the end everything is sent at once, under keys that may be late; called day after day it
    sends each day's events as they come, and accounts change with them.

    Raises
    ------
    SimulationError
        If the data folder holds this seed with other parameters.
    SimulationInterrupted
        If it was stopped or the API went away. Running it again goes on.
    """
    started = time.monotonic()
    now = clock.now()
    until = min(simulation.end_date, now.date())
    as_of = datetime.combine(until, clock_time(), UTC)
    stories = [live(simulation, customer) for customer in population(simulation)]
    with engine.begin() as connection:
        accounts = sync_accounts(connection, stories, as_of, now)
    with open_state(settings.home_path, simulation) as state:
        report = on_progress or (lambda _progress: None)
        run = _Run(settings, engine, simulation, clock, state, until, report)
        try:
            asyncio.run(run.send(stories, retry, concurrency))
        except (KeyboardInterrupt, IngestError) as error:
            raise SimulationInterrupted(
                f"{str(error) or 'stopped on request'}. What is confirmed is kept; run it again to go on"
            ) from error
        tally = state.tally()
    repeats = {kind.value: tally.by_kind.get(kind, 0) for kind in Kind if not kind.counts}
    sent = sum(tally.by_kind.values())
    left = Counter(
        str(story.cause) for story in stories if story.ends_at is not None and story.ends_at < as_of
    )
    return SimulationReport(
        simulation=simulation,
        accounts=accounts,
        causes_of_leaving=dict(sorted(left.items())),
        generated=sent - sum(repeats.values()),
        sent=sent,
        acknowledged=tally.answers.get("accepted", 0) + tally.answers.get("duplicate", 0),
        rejected=tally.answers.get("rejected", 0),
        answered_duplicate=tally.answers.get("duplicate", 0),
        late=tally.by_kind.get(Kind.LATE, 0),
        corrections=tally.by_kind.get(Kind.CORRECTION, 0),
        repeats=repeats,
        expected_events=tally.events_by_metric,
        expected_quantity=tally.quantity_by_metric,
        sent_by_this_run=run.sent,
        requests=run.client_counts.requests,
        retries=run.client_counts.retries,
        seconds=time.monotonic() - started,
    )


class _Run:
    """One run's sending."""

    def __init__(
        self,
        settings: Settings,
        engine: sa.Engine,
        simulation: Simulation,
        clock: Clock,
        state: SimulationState,
        until: date,
        report: Callable[[SimulationProgress], None],
    ) -> None:
        self.client_counts = ClientCounts()
        self.sent = 0
        self._settings = settings
        self._engine = engine
        self._simulation = simulation
        self._clock = clock
        self._state = state
        self._until = until
        self._report = report
        self._label = f"simulator {simulation.seed}"
        self._done = 0

    async def send(self, stories: list[Life], retry: RetryPolicy | None, concurrency: int) -> None:
        confirmed = self._state.confirmed_until()
        start = self._simulation.start_date
        pending = [
            (story, confirmed.get(story.customer.index, max(story.first_day, start)))
            for story in stories
            if story.customer.created_at.date() < self._until
        ]
        pending = [(story, first) for story, first in pending if first < self._until]
        if not pending:
            return
        keys = await asyncio.to_thread(self._issue_keys, pending)
        jobs = iter(zip(pending, keys, strict=True))
        try:
            async with IngestClient(
                self._settings.api_url,
                concurrency=concurrency,
                retry=retry,
                max_batch_events=self._settings.api_max_batch_events,
            ) as client:
                self.client_counts = client.counts
                try:
                    async with asyncio.TaskGroup() as tasks:
                        for _ in range(concurrency):
                            tasks.create_task(self._work(client, jobs, len(pending)))
                except BaseExceptionGroup as group:
                    # The others were cancelled because of the first, which says why.
                    raise group.exceptions[0] from None
        finally:
            with self._engine.begin() as connection:
                revoke_keys_labelled(connection, self._label, self._clock.now())

    def _issue_keys(self, pending: list[tuple[Life, date]]) -> list[str]:
        now = self._clock.now()
        first = min(day for _, day in pending)
        oldest = datetime.combine(first, clock_time(), UTC) - timedelta(days=MAX_BEHIND_DAYS)
        scopes = [KeyScope.INGEST]
        if now - oldest > self._settings.event_max_late:
            scopes.append(KeyScope.HISTORICAL)
        with self._engine.begin() as connection:
            revoke_keys_labelled(connection, self._label, now)  # of a run that was killed
            issued = issue_keys(
                connection,
                [customer_id(story) for story, _ in pending],
                now,
                label=self._label,
                scopes=scopes,
                expires_at=now + _KEY_LIFE,
            )
        return [key.plaintext for key in issued]

    async def _work(
        self, client: IngestClient, jobs: Iterator[tuple[tuple[Life, date], str]], customers: int
    ) -> None:
        for (story, first), key in jobs:
            for chunk in self._chunks(story, first):
                tally = Tally()
                for sent in chunk.events:
                    tally.add(sent)
                tally.add_answers(await client.send(key, [sent.event for sent in chunk.events]))
                self._state.confirm(story.customer.index, chunk.first_day, chunk.end_day, tally)
                self.sent += len(chunk.events)
            self._done += 1
            self._report(SimulationProgress(self._done, customers, self.sent))

    def _chunks(self, story: Life, first: date) -> Iterator[_Chunk]:
        """The customer's days from `first` on, gathered until a request is full; the last ends at `until`."""
        chunk = _Chunk(first, first)
        for day, events in deliveries(self._simulation.seed, story, first, self._until):
            if chunk.events and len(chunk.events) + len(events) > self._settings.api_max_batch_events:
                chunk.end_day = day
                yield chunk
                chunk = _Chunk(day, day)
            chunk.events += events
        chunk.end_day = self._until
        yield chunk
