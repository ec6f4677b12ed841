"""What operators do with mail by hand: look at the queue, send again, preview, send a test.

Belongs here: functions behind the `apex email` commands. Does not belong here: printing, options.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa

from apex_pipelines.messaging.mail_types import mail_type, mail_types, sample_data
from apex_pipelines.messaging.providers import Provider
from apex_pipelines.messaging.queue import drain
from apex_pipelines.messaging.rendering import Renderer
from apex_pipelines.platform.clock import Clock
from apex_pipelines.settings import Settings


class UnknownEvent(LookupError):
    """There is no mail event of this id."""


class TestMailFailed(RuntimeError):
    """The test mail did not go out."""

    __test__ = False  # pytest takes classes called Test… for tests


class QueueState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class QueueItem:
    """One mail event as an operator sees it; instants in UTC."""

    id: int
    email_type: str
    customer_id: str | None
    state: QueueState
    priority: int
    attempts: int
    created_at: datetime
    not_before: datetime
    processed_at: datetime | None
    error_message: str | None


_STATE = "case when processed_at is null then 'pending' else outcome end"


def list_queue(
    engine: sa.Engine, *, state: QueueState | None = QueueState.PENDING, limit: int = 100
) -> list[QueueItem]:
    """Mail events of one state (None: of any), the next to go first; those that are done, newest first."""
    order = "priority, not_before, id" if state is QueueState.PENDING else "id desc"
    query = sa.text(f"""
        select id, substr(event_type, 7) as email_type, customer_id, {_STATE} as state, priority, attempts,
               created_at, not_before, processed_at, error_message
        from events
        where event_type like 'email.%' and (cast(:state as text) is null or {_STATE} = :state)
        order by {order} limit :limit
    """)  # noqa: S608 - both inserted parts are constants of this file
    with engine.connect() as connection:
        rows = connection.execute(query, {"state": state.value if state else None, "limit": limit})
        return [QueueItem(**{**row._mapping, "state": QueueState(row.state)}) for row in rows]


def queue_counts(engine: sa.Engine) -> dict[QueueState, int]:
    """How many mail events are in each state."""
    query = sa.text(
        f"select {_STATE} as state, count(*) as n from events where event_type like 'email.%' group by 1"  # noqa: S608
    )
    with engine.connect() as connection:
        found = {QueueState(row.state): int(row.n) for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in QueueState}


def retry_event(engine: sa.Engine, event_id: int, clock: Clock) -> QueueState:
    """Queue one mail event again, whatever became of it; the next drain sends it.

    Returns
    -------
    QueueState
        What it was before. `sent` means that the recipient gets the mail a second time.

    Raises
    ------
    UnknownEvent
        If no mail event has this id.
    """
    with engine.begin() as connection:
        row = connection.execute(
            sa.text(
                f"select {_STATE} as state from events "  # noqa: S608
                "where id = :id and event_type like 'email.%' for update"
            ),
            {"id": event_id},
        ).one_or_none()
        if row is None:
            raise UnknownEvent(f"no mail event has the id {event_id}; `apex email queue` lists them")
        _reset(connection, [event_id], clock.now())
    return QueueState(row.state)


def retry_failed(engine: sa.Engine, clock: Clock) -> int:
    """Queue every failed mail again; returns how many."""
    with engine.begin() as connection:
        ids = connection.scalars(
            sa.text(
                "select id from events where event_type like 'email.%' and outcome = 'failed' "
                "and processed_at is not null for update skip locked"
            )
        ).all()
        _reset(connection, list(ids), clock.now())
    return len(ids)


def _reset(connection: sa.Connection, ids: list[int], now: datetime) -> None:
    """What an operator may as well write by hand, and due at once."""
    connection.execute(
        sa.text(
            "update events set processed_at = null, error_message = null, attempts = 0, not_before = :now "
            "where id = any(:ids)"
        ),
        {"ids": ids, "now": now},
    )


def preview(settings: Settings, email_type: str | None, folder: Path) -> list[Path]:
    """Render one mail type (None: all) with sample data into `folder`, as `.html` and `.txt`.

    Returns
    -------
    list of Path
        The HTML files.

    Raises
    ------
    UnknownMailType
        If there is no such type.
    """
    kinds = [mail_type(email_type)] if email_type else list(mail_types().values())
    renderer = Renderer(settings.site_url)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        content = renderer.render(
            kind,
            sample_data(kind.name),
            name="Ada Lovelace",
            unsubscribe_url=f"{settings.site_url}/unsubscribe?token=preview",
        )
        (folder / f"{kind.name}.txt").write_text(
            f"Subject: {content.subject}\n\n{content.text}", encoding="utf-8"
        )
        path = folder / f"{kind.name}.html"
        path.write_text(content.html, encoding="utf-8")
        written.append(path)
    return written


def send_test(
    engine: sa.Engine, provider: Provider, clock: Clock, settings: Settings, *, email_type: str, to: str
) -> int:
    """Send one mail type with sample data to `to` at once; logged as `test.<type>`, subject marked [test].

    Returns
    -------
    int
        Id of the event.

    Raises
    ------
    UnknownMailType
        If there is no such type.
    TestMailFailed
        If the mail did not go out; the message says why.
    """
    kind = mail_type(email_type)
    data = {**sample_data(email_type), "test": True, "recipient": to}
    insert = sa.text(
        "insert into events (event_type, data, priority, created_at, not_before) "
        "values (:type, :data, 0, :now, :now) returning id"
    ).bindparams(sa.bindparam("data", type_=sa.JSON))
    with engine.begin() as connection:
        event_id = int(
            connection.execute(
                insert, {"type": kind.event_type, "data": data, "now": clock.now()}
            ).scalar_one()
        )
    drain(engine, provider, clock, settings=settings, only_event=event_id)
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("select outcome, error_message from events where id = :id"), {"id": event_id}
        ).one()
    if row.outcome != "sent":
        raise TestMailFailed(f"event {event_id} was not sent: {row.error_message or 'another worker has it'}")
    return event_id
