"""Operational tables of the life-cycle rules: usage alerts that were raised."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base


class UsageAlert(Base):
    """A threshold of an included quantity that a customer reached; once per billing period."""

    __tablename__ = "usage_alerts"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    customer_id: Mapped[str] = mapped_column(sa.ForeignKey("customers.id"))
    metric_type: Mapped[str] = mapped_column(sa.Text)
    threshold_percent: Mapped[int] = mapped_column(sa.Integer)
    period_start: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    mailed: Mapped[bool] = mapped_column(sa.Boolean)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))

    __table_args__ = (sa.UniqueConstraint("customer_id", "metric_type", "threshold_percent", "period_start"),)
