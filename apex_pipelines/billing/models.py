"""Operational tables of money: the plan catalogue as the database knows it, and payments."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base


class Plan(Base):
    """One plan of the catalogue; filled from `dbt_project/seeds/plan_catalogue.csv`, the one source."""

    __tablename__ = "plans"

    plan_type: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text)
    base_price_cents: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.Text, server_default="usd")
    included_impressions: Mapped[int] = mapped_column(sa.BigInteger)
    included_api_calls: Mapped[int] = mapped_column(sa.BigInteger)
    included_data_transfer_gb: Mapped[int] = mapped_column(sa.BigInteger)
    trial_days: Mapped[int] = mapped_column(sa.Integer)


class PaymentStatus(StrEnum):
    """What became of an attempt to collect an invoice."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Payment(Base):
    """One attempt to collect one invoice. Amounts in minor units of `currency` (cents)."""

    __tablename__ = "payments"

    id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    customer_id: Mapped[str] = mapped_column(sa.ForeignKey("customers.id"), index=True)
    invoice_id: Mapped[str] = mapped_column(sa.Text)
    attempt_number: Mapped[int] = mapped_column(sa.Integer)
    status: Mapped[str] = mapped_column(sa.Text)
    amount_cents: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.Text, server_default="usd")
    failure_code: Mapped[str | None] = mapped_column(sa.Text)
    occurred_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))

    __table_args__ = (
        sa.UniqueConstraint("invoice_id", "attempt_number"),
        sa.CheckConstraint("status in ('succeeded', 'failed')", name="status_known"),
    )
