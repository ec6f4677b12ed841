"""What mail tests share: making customers, queueing mails, a provider that fails on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import pytest
import sqlalchemy as sa

from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.messaging.mail_types import sample_data
from apex_pipelines.messaging.outbox import enqueue
from apex_pipelines.messaging.providers import Mail, ProviderUnavailable, SendResult
from apex_pipelines.platform.clock import ManualClock

MakeCustomer = Callable[..., str]
QueueMail = Callable[..., int]


@pytest.fixture
def make_customer(engine: sa.Engine, clock: ManualClock) -> MakeCustomer:
    """Creates a customer and returns the id; keyword arguments are fields of `NewCustomer`."""
    made = 0

    def make(**fields: object) -> str:
        nonlocal made
        made += 1
        new = NewCustomer(**{"name": f"Studio {made}", "email": f"studio{made}@example.com"} | fields)  # type: ignore[arg-type]
        with engine.begin() as connection:
            return create_customer(connection, new, clock.now())

    return make


@pytest.fixture
def queue_mail(engine: sa.Engine, clock: ManualClock) -> QueueMail:
    """Queues a mail with sample data and returns the event's id."""
    queued = 0

    def queue(email_type: str, customer_id: str | None, *, not_before: datetime | None = None) -> int:
        nonlocal queued
        queued += 1
        with engine.begin() as connection:
            new = enqueue(
                connection,
                email_type=email_type,
                customer_id=customer_id,
                data=sample_data(email_type),
                occurrence_key=f"test:{queued}",
                now=clock.now(),
                not_before=not_before,
            )
            assert new
            found = connection.scalar(
                sa.text("select id from events where occurrence_key = :key"), {"key": f"test:{queued}"}
            )
            assert isinstance(found, int)
            return found

    return queue


class RecordingProvider:
    """Keeps what it is given; fails as it is told."""

    name = "recording"

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.error: str | None = None
        self.permanent = False
        self.down = False

    def send(self, mails: Sequence[Mail]) -> list[SendResult]:
        if self.down:
            raise ProviderUnavailable("no route to the mail host")
        if self.error is not None:
            return [SendResult(error=self.error, permanent=self.permanent) for _ in mails]
        self.mails.extend(mails)
        return [SendResult(provider_message_id=mail.message_id) for mail in mails]

    def finish(self) -> None:
        pass


@pytest.fixture
def provider() -> RecordingProvider:
    return RecordingProvider()


def event(engine: sa.Engine, event_id: int) -> sa.Row[tuple[object, ...]]:
    """One event as the database has it."""
    with engine.connect() as connection:
        return connection.execute(sa.text("select * from events where id = :id"), {"id": event_id}).one()


def reset_by_hand(engine: sa.Engine, event_id: int) -> None:
    """What operators write by hand to send a mail again."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("update events set processed_at = null, error_message = null where id = :id"),
            {"id": event_id},
        )
