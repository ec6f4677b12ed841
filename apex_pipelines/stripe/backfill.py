"""Reading everything that an account has, once; what changes meanwhile is left to the event list.

How nothing is lost
-------------------
* Before the first object is read, the newest event is noted; the sweep goes on from there. So what is
  created, changed or deleted while lists are read is read again.
* A list is read from its newest object backwards. What appears in front is seen by the sweep; when the object
  at which reading stands is deleted, it goes on by time (`Reader.pages`).
* The cursor moves when what stands before it is durable in the warehouse and mirrored. A killed backfill
  reads at most one batch again.
* What the warehouse holds from before and the list did not show is asked for one by one: that is how
  deletions of which no event tells any more are seen.

Belongs here: the order of these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.stripe.client import API_VERSION
from apex_pipelines.stripe.cursors import BACKFILL, EVENTS, find_cursor, move_cursor, reading_alone
from apex_pipelines.stripe.landing import FetchedObject, deleted_object, land
from apex_pipelines.stripe.mirror import Mirror
from apex_pipelines.stripe.models import StripeCursor
from apex_pipelines.stripe.nested_lists import with_nested
from apex_pipelines.stripe.object_types import OBJECT_TYPES, ObjectType
from apex_pipelines.stripe.reading import ObjectGone, Page, Position, Reader

log = get_logger(__name__)
# Whatever comes first ends a batch, which is one insert and one step of the cursor.
BATCH_OBJECTS = 1_000
BATCH_CHARACTERS = 8_000_000

Progress = Callable[[str, int], None]


def say_nothing(_object_type: str, _objects: int) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True)
class BackfillReport:
    """What one call did.

    Attributes
    ----------
    objects : dict of str to int
        Objects landed, by type; types that were done before are missing.
    problems : list of str
        What could not be mirrored to the operational tables, and why.
    """

    objects: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def unfinished_types(engine: sa.Engine, *, livemode: bool) -> list[str]:
    """Types of which no backfill has come to its end."""
    with engine.connect() as connection:
        cursors = {name: find_cursor(connection, BACKFILL + name, livemode=livemode) for name in OBJECT_TYPES}
    return [name for name, cursor in cursors.items() if cursor is None or cursor.finished_at is None]


def backfill(
    engine: sa.Engine,
    client: Client,
    reader: Reader,
    *,
    types: Collection[str] | None = None,
    again: bool = False,
    progress: Progress = say_nothing,
) -> BackfillReport:
    """Read all objects of these types (None: of all) into the warehouse; goes on where a killed one stopped.

    Parameters
    ----------
    again : bool
        Read types anew that were read to the end before.
    progress : callable
        Is told the type and how many of its objects this call has landed, after each batch.

    Raises
    ------
    ReadingUnderWay
        If another process reads from this account now.
    stripe.StripeError
        If Stripe refuses, or can't be reached; calling again goes on.
    """
    kinds = [kind for kind in OBJECT_TYPES.values() if types is None or kind.name in types]
    run = _Backfill(engine, client, reader, progress)
    with reading_alone(engine, livemode=reader.livemode):
        # In this order: killed between the two, what is unfinished is read anew.
        if again:
            run.forget(kinds)
        run.note_newest_event(forget_old=again and types is None)
        for kind in kinds:
            run.read_type(kind)
    return run.report


class _Backfill:
    def __init__(self, engine: sa.Engine, client: Client, reader: Reader, progress: Progress) -> None:
        self._engine = engine
        self._client = client
        self._reader = reader
        self._mirror = Mirror(engine, reader)
        self._progress = progress
        self.report = BackfillReport()

    def note_newest_event(self, *, forget_old: bool) -> None:
        """Remember from where the sweep has to go on; what it knows already reaches further back."""
        cursor = self._cursor(EVENTS)
        if cursor is not None and not forget_old:
            return
        now = self._reader.clock.now()
        newest = self._reader.page("/v1/events", {"limit": 1}).start
        self._move(
            EVENTS,
            position=None if newest is None else newest.object_id,
            position_at=None if newest is None else newest.created_at,
            started_at=now,
        )

    def forget(self, kinds: Collection[ObjectType]) -> None:
        """All at once, so that after a kill those that have not had their turn are still to be read."""
        with self._engine.begin() as connection:
            for kind in kinds:
                move_cursor(
                    connection,
                    BACKFILL + kind.name,
                    self._reader.clock.now(),
                    livemode=self._reader.livemode,
                    position=None,
                    position_at=None,
                    started_at=None,
                    finished_at=None,
                )

    def read_type(self, kind: ObjectType) -> None:
        name = BACKFILL + kind.name
        cursor = self._cursor(name)
        if cursor is not None and cursor.finished_at is not None:
            return
        after = None
        if cursor is None or cursor.started_at is None:
            started_at = self._reader.clock.now()
            self._move(name, started_at=started_at)
        else:
            started_at = cursor.started_at
            if cursor.position is not None:
                after = Position(cursor.position, cursor.position_at)
        self.report.objects[kind.name] = 0
        for batch, end in _batches(self._pages(kind, after)):
            self._keep(kind, batch)
            self._move(name, position=end.object_id, position_at=end.created_at)
        self._ask_for_unseen(kind, started_at)
        self._move(name, finished_at=self._reader.clock.now())
        log.info("stripe backfill finished", type=kind.name, objects=self.report.objects[kind.name])

    def _pages(self, kind: ObjectType, after: Position | None) -> Iterator[Page]:
        if not kind.is_per_customer:
            yield from self._reader.pages(
                kind.path, kind.filters, after=after, has_created_filter=kind.has_created_filter
            )
            return
        customers = OBJECT_TYPES["customer"]
        for page in self._reader.pages(customers.path, {}, after=after, has_created_filter=True):
            found = tuple(
                one
                for customer in page.objects
                for part in self._reader.pages(kind.path.format(parent=customer.id), kind.filters)
                for one in part.objects
            )
            yield Page(found, page.start, page.end, page.has_more)

    def _keep(self, kind: ObjectType, batch: list[FetchedObject]) -> None:
        whole = with_nested(self._client, self._reader, kind, batch)
        land(self._client, whole, api_version=API_VERSION, livemode=self._reader.livemode)
        self.report.problems += self._mirror.apply(batch).values()
        self.report.objects[kind.name] += len(batch)
        self._progress(kind.name, self.report.objects[kind.name])

    def _ask_for_unseen(self, kind: ObjectType, started_at: datetime) -> None:
        """Ask for what the warehouse has from before and the list did not show."""
        if kind.is_per_customer and not kind.can_vanish:
            return  # never deleted, and without an address that could be asked
        unseen = """
            select id from raw.stripe_objects final
            where object = {object:String} and livemode = {livemode:Bool}
            group by id
            having max(fetched_at) < {started_at:DateTime64(6, 'UTC')}
                and maxIf(fetched_at, is_deleted = 0) > maxIf(fetched_at, is_deleted = 1)
            order by id
        """
        rows = self._client.query(
            unseen,
            parameters={"object": kind.name, "livemode": self._reader.livemode, "started_at": started_at},
        ).result_rows
        for first in range(0, len(rows), BATCH_OBJECTS):
            self._keep(kind, [self._as_it_is(kind, row[0]) for row in rows[first : first + BATCH_OBJECTS]])

    def _as_it_is(self, kind: ObjectType, object_id: str) -> FetchedObject:
        asked_at = self._reader.clock.now()
        try:
            return self._reader.one(kind, object_id)
        except ObjectGone:
            if not kind.can_vanish:
                raise  # Stripe forgets none of these: the key is of another account
            return deleted_object(kind.name, object_id, asked_at)

    def _cursor(self, name: str) -> StripeCursor | None:
        with self._engine.connect() as connection:
            return find_cursor(connection, name, livemode=self._reader.livemode)

    def _move(self, name: str, **values: str | datetime | None) -> None:
        with self._engine.begin() as connection:
            move_cursor(connection, name, self._reader.clock.now(), livemode=self._reader.livemode, **values)


def _batches(pages: Iterator[Page]) -> Iterator[tuple[list[FetchedObject], Position]]:
    """Pages put together to batches, each with where it ends."""
    held: list[FetchedObject] = []
    characters = 0
    end: Position | None = None
    for page in pages:
        held.extend(page.objects)
        characters += sum(len(one.payload) for one in page.objects)
        end = page.end or end
        if end is not None and (len(held) >= BATCH_OBJECTS or characters >= BATCH_CHARACTERS):
            yield held, end
            held, characters = [], 0
    if held and end is not None:
        yield held, end
