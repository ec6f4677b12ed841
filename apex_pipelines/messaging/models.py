"""Operational tables of mail: the outbox (`events`), the log of what was sent, and suppressions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base

TIMESTAMP = sa.DateTime(timezone=True)


class Event(Base):
    """A thing that happened and must be acted on once; rows of type `email.%` are the mail outbox.

    Pending means `processed_at is null`. Setting `processed_at` and `error_message` back to NULL sends the
    mail again (operators do this by hand); an `occurrence_key` makes sure that no cause queues two mails.
    """

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    event_type: Mapped[str] = mapped_column(sa.Text)
    customer_id: Mapped[str | None] = mapped_column(sa.ForeignKey("customers.id"), index=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=sa.text("'{}'::jsonb"))
    occurrence_key: Mapped[str | None] = mapped_column(sa.Text, unique=True)
    priority: Mapped[int] = mapped_column(
        sa.SmallInteger, server_default="50", comment="lower goes first; money mail is 10"
    )
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    not_before: Mapped[datetime] = mapped_column(TIMESTAMP, comment="earliest next attempt")
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    outcome: Mapped[str | None] = mapped_column(sa.Text, comment="sent, skipped or failed, once processed")
    processed_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    error_message: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.CheckConstraint("outcome in ('sent', 'skipped', 'failed')", name="outcome_known"),
        sa.Index(
            "ix_events_pending",
            "priority",
            "not_before",
            "id",
            postgresql_where=sa.text("processed_at is null"),
        ),
    )


class EmailLog(Base):
    """One row a mail that was handed to the provider."""

    __tablename__ = "email_log"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    event_id: Mapped[int] = mapped_column(sa.ForeignKey("events.id"), index=True)
    customer_id: Mapped[str | None] = mapped_column(sa.ForeignKey("customers.id"))
    email_type: Mapped[str] = mapped_column(sa.Text)
    recipient: Mapped[str] = mapped_column(sa.Text)
    subject: Mapped[str] = mapped_column(sa.Text)
    provider: Mapped[str] = mapped_column(sa.Text)
    provider_message_id: Mapped[str | None] = mapped_column(sa.Text)
    sent_at: Mapped[datetime] = mapped_column(TIMESTAMP)

    __table_args__ = (sa.Index("ix_email_log_customer_type_sent", "customer_id", "email_type", "sent_at"),)


class Suppression(Base):
    """An address that gets no more mail, and why."""

    __tablename__ = "suppressions"

    email: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    reason: Mapped[str] = mapped_column(sa.Text, comment="hard_bounce, complaint or unsubscribed")
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
