"""The inbox of webhooks: each event that a provider told us about, once, as it was signed."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base

TIMESTAMP = sa.DateTime(timezone=True)


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

    __table_args__ = (
        sa.UniqueConstraint("provider", "event_id"),
        sa.CheckConstraint("provider in ('stripe', 'resend')", name="provider_known"),
        sa.Index("ix_webhook_inbox_pending", "id", postgresql_where=sa.text("processed_at is null")),
    )
