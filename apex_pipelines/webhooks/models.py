"""The inbox of webhooks: each event that a provider told us about, once, as it was signed."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base

TIMESTAMP = sa.DateTime(timezone=True)


class WebhookOutcome(StrEnum):
    """What became of an event: taken in, of no use to us, or given up until somebody asks for it again."""

    DONE = "done"
    IGNORED = "ignored"
    FAILED = "failed"


class WebhookEvent(Base):
    """Pending means `processed_at is null`; the order of ids is that of arrival, not of what happened."""

    __tablename__ = "webhook_inbox"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    provider: Mapped[str] = mapped_column(sa.Text)
    event_id: Mapped[str] = mapped_column(sa.Text, comment="the provider's; a repeat is stored once")
    event_type: Mapped[str] = mapped_column(sa.Text)
    # Bytes: jsonb refuses \u0000, and what was signed can be checked again.
    payload: Mapped[bytes] = mapped_column(sa.LargeBinary, comment="JSON in UTF-8, as it was signed")
    received_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    processed_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default="0", comment="that failed")
    not_before: Mapped[datetime | None] = mapped_column(TIMESTAMP, comment="of the next attempt")
    outcome: Mapped[str | None] = mapped_column(sa.Text, comment="of what is processed")
    error_message: Mapped[str | None] = mapped_column(sa.Text, comment="of the last attempt, or why not")

    __table_args__ = (
        sa.UniqueConstraint("provider", "event_id"),
        sa.CheckConstraint("provider in ('stripe', 'resend')", name="provider_known"),
        sa.CheckConstraint("outcome in ('done', 'ignored', 'failed')", name="outcome_known"),
        sa.Index("ix_webhook_inbox_pending", "id", postgresql_where=sa.text("processed_at is null")),
        sa.Index("ix_webhook_inbox_failed", "id", postgresql_where=sa.text("outcome = 'failed'")),
    )
