"""How far reading has come: rows of `stripe_cursors`, and the lock that lets one process read at a time.

Belongs here: the cursors. Does not belong here: what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.stripe.models import StripeCursor

EVENTS = "events"
BACKFILL = "backfill:"


class ReadingUnderWay(RuntimeError):
    """Another process reads from this account now."""


@contextmanager
def reading_alone(engine: sa.Engine, *, livemode: bool) -> Iterator[None]:
    """Nobody else moves the cursors meanwhile; the lock ends with its process, however that ends.

    Raises
    ------
    ReadingUnderWay
        If another process has it.
    """
    with engine.connect() as connection, connection.begin():
        lock = sa.text("select pg_try_advisory_xact_lock(hashtext('apex.stripe.reading'), :mode)")
        if not connection.scalar(lock, {"mode": int(livemode)}):
            raise ReadingUnderWay(
                "another backfill or sweep of this Stripe account is under way; wait until it has ended"
            )
        yield


def find_cursor(connection: sa.Connection, name: str, *, livemode: bool) -> StripeCursor | None:
    """The cursor as a value; changing it changes nothing."""
    row = connection.execute(
        sa.select(StripeCursor.__table__).where(StripeCursor.name == name, StripeCursor.livemode == livemode)
    ).one_or_none()
    return None if row is None else StripeCursor(**row._mapping)


def move_cursor(
    connection: sa.Connection, name: str, now: datetime, *, livemode: bool, **values: str | datetime | None
) -> None:
    """Set these columns of the cursor, which is made when it is not there."""
    changes = {**values, "updated_at": now}
    statement = insert(StripeCursor).values(name=name, livemode=livemode, **changes)
    connection.execute(statement.on_conflict_do_update(index_elements=["name", "livemode"], set_=changes))
