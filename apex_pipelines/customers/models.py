"""Operational tables of the customer: who they are, their keys and their subscription."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base

TIMESTAMP = sa.DateTime(timezone=True)


class SubscriptionStatus(StrEnum):
    """States of a subscription; the words are Stripe's, `suspended` is ours (after the last failed retry)."""

    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    SUSPENDED = "suspended"
    CANCELED = "canceled"


class KeyScope(StrEnum):
    """What an API key may do.

    `historical` lifts the 35-day limit on late events, for imports. `operator` reports life events of any
    customer; such a key belongs to no customer.
    """

    INGEST = "ingest"
    HISTORICAL = "historical"
    OPERATOR = "operator"


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text)
    email: Mapped[str] = mapped_column(sa.Text)
    company_size: Mapped[int | None] = mapped_column(sa.Integer)
    country: Mapped[str | None] = mapped_column(sa.Text)
    time_zone: Mapped[str] = mapped_column(sa.Text, server_default="UTC")
    marketing_consent: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.true())
    source: Mapped[str] = mapped_column(sa.Text, comment="signup, simulator, or the name of an import")
    external_ref: Mapped[str | None] = mapped_column(sa.Text, comment="the customer's name in its source")
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)

    __table_args__ = (sa.UniqueConstraint("source", "external_ref"),)


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    customer_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("customers.id"), index=True, comment="null: a key of the operator"
    )
    label: Mapped[str] = mapped_column(sa.Text, server_default="default")
    prefix: Mapped[str] = mapped_column(sa.Text, comment="first 12 characters, shown to people")
    key_hash: Mapped[bytes] = mapped_column(sa.LargeBinary, unique=True, comment="SHA-256 of the whole key")
    scopes: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    expires_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    revoked_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)

    __table_args__ = (
        sa.CheckConstraint(
            "('operator' = any (scopes)) = (customer_id is null)", name="operator_has_no_customer"
        ),
    )


class Subscription(Base):
    __tablename__ = "subscriptions"

    id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    customer_id: Mapped[str] = mapped_column(sa.ForeignKey("customers.id"), index=True)
    plan_type: Mapped[str] = mapped_column(sa.ForeignKey("plans.plan_type"))
    status: Mapped[str] = mapped_column(sa.Text)
    base_price_cents: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.Text, server_default="usd")
    included_impressions: Mapped[int] = mapped_column(sa.BigInteger)
    included_api_calls: Mapped[int | None] = mapped_column(
        sa.BigInteger, comment="of this customer; null: the plan's"
    )
    included_data_transfer_gb: Mapped[int | None] = mapped_column(
        sa.BigInteger, comment="of this customer; null: the plan's"
    )
    platform_fee_basis_points: Mapped[int | None] = mapped_column(
        sa.Integer, comment="of the highest band by contract; null: its own"
    )
    platform_fee_minimum_cents: Mapped[int] = mapped_column(
        sa.BigInteger, server_default="0", comment="least platform fee of a month by contract"
    )
    started_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    trial_end: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    current_period_start: Mapped[datetime] = mapped_column(TIMESTAMP)
    current_period_end: Mapped[datetime] = mapped_column(TIMESTAMP)
    cancelled_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMP)

    __table_args__ = (
        sa.CheckConstraint(
            "status in ('trialing', 'active', 'past_due', 'suspended', 'canceled')", name="status_known"
        ),
        sa.CheckConstraint("(status = 'canceled') = (cancelled_at is not null)", name="canceled_has_time"),
        sa.CheckConstraint("platform_fee_basis_points between 100 and 150", name="platform_fee_in_range"),
        sa.CheckConstraint("platform_fee_minimum_cents >= 0", name="platform_fee_minimum_positive"),
        sa.Index(
            "uq_subscriptions_one_open",
            "customer_id",
            unique=True,
            postgresql_where=sa.text("status <> 'canceled'"),
        ),
    )


class SubscriptionChange(Base):
    """The terms of a subscription from `effective_at` until its next change; the database writes each row.

    A change of several things at once is one row. Of two rows of one instant the later `id` holds.
    """

    __tablename__ = "subscription_changes"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    subscription_id: Mapped[str] = mapped_column(sa.ForeignKey("subscriptions.id", ondelete="CASCADE"))
    customer_id: Mapped[str] = mapped_column(sa.Text)
    effective_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    plan_type: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Text)
    base_price_cents: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.Text)
    included_impressions: Mapped[int] = mapped_column(sa.BigInteger)
    included_api_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    included_data_transfer_gb: Mapped[int | None] = mapped_column(sa.BigInteger)
    platform_fee_basis_points: Mapped[int | None] = mapped_column(sa.Integer)
    platform_fee_minimum_cents: Mapped[int] = mapped_column(sa.BigInteger)

    __table_args__ = (sa.Index("ix_subscription_changes_subscription_id", "subscription_id", "effective_at"),)


class OnboardingProgress(Base):
    __tablename__ = "onboarding_progress"

    customer_id: Mapped[str] = mapped_column(sa.ForeignKey("customers.id"), primary_key=True)
    step: Mapped[str] = mapped_column(
        sa.Text,
        primary_key=True,
        comment="signed_up, sdk_downloaded.<platform>, first_request, first_impression",
    )
    occurred_at: Mapped[datetime] = mapped_column(TIMESTAMP)
