"""Operational tables of the exchange with Stripe: who is who there, how far reading came, what was sent."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from apex_pipelines.platform.postgres import Base

TIMESTAMP = sa.DateTime(timezone=True)


class StripeLink(Base):
    """One of our things and its object at Stripe, in one mode of the account.

    `local_id` of a customer or subscription is its id here; of what the catalogue has, the name that
    `apex stripe bootstrap` gives it (`product:indie`, `price:indie`, `meter:impressions`).
    """

    __tablename__ = "stripe_links"

    object: Mapped[str] = mapped_column(sa.Text, primary_key=True, comment="type, as Stripe names it")
    local_id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    livemode: Mapped[bool] = mapped_column(sa.Boolean, primary_key=True)
    stripe_id: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    mirrored_at: Mapped[datetime | None] = mapped_column(
        TIMESTAMP, comment="when the state that our row shows was asked for; null: never"
    )
    mirrored_terms: Mapped[str | None] = mapped_column(
        sa.Text, comment="what of it may be changed on either side, as Stripe had it then"
    )

    __table_args__ = (sa.UniqueConstraint("object", "stripe_id", "livemode"),)


class StripeCursor(Base):
    """How far one way of reading (a backfill of one type, the event list) has come.

    A backfill goes from the newest object backwards and ends once; the event list is read forwards, for ever.
    """

    __tablename__ = "stripe_cursors"

    name: Mapped[str] = mapped_column(sa.Text, primary_key=True, comment="such as backfill:invoice, events")
    livemode: Mapped[bool] = mapped_column(sa.Boolean, primary_key=True)
    position: Mapped[str | None] = mapped_column(
        sa.Text, comment="id of the last object read; null: none yet"
    )
    position_at: Mapped[datetime | None] = mapped_column(TIMESTAMP, comment="when Stripe created that object")
    started_at: Mapped[datetime | None] = mapped_column(
        TIMESTAMP, comment="of the backfill, or of the last look at the event list; by our clock"
    )
    finished_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMP)


class SentState(StrEnum):
    """What became of a line of the meter ledger.

    `pending` was written before it was sent, so whether Stripe has it is not known; `sent` was accepted;
    `rejected` was refused at once or later, and counts for nothing; `invoiced` is too old to be metered, and
    its money goes onto an invoice as an item of its own.
    """

    PENDING = "pending"
    SENT = "sent"
    REJECTED = "rejected"
    INVOICED = "invoiced"


class MeterLedgerEntry(Base):
    """One meter event: so much more (or less) use of one customer, metric and slot.

    A slot is a UTC day, or the part of it inside one billing period. The entries of a slot that are not
    rejected add up to what Stripe has been told of it.
    """

    __tablename__ = "stripe_meter_ledger"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    livemode: Mapped[bool] = mapped_column(sa.Boolean)
    customer_id: Mapped[str] = mapped_column(sa.Text)
    stripe_customer_id: Mapped[str] = mapped_column(sa.Text)
    subscription_id: Mapped[str] = mapped_column(sa.Text)
    metric_type: Mapped[str] = mapped_column(sa.Text)
    usage_date: Mapped[date] = mapped_column(sa.Date, comment="UTC")
    period_start: Mapped[datetime] = mapped_column(TIMESTAMP, comment="of the billing period")
    slot_start: Mapped[datetime] = mapped_column(TIMESTAMP, comment="timestamp of the meter event")
    number: Mapped[int] = mapped_column(sa.Integer, comment="of the entry in its slot, from 1")
    quantity: Mapped[int] = mapped_column(sa.BigInteger, comment="difference, in storage units")
    identifier: Mapped[str] = mapped_column(sa.Text, comment="the meter event's; the same for every attempt")
    state: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    first_sent_at: Mapped[datetime | None] = mapped_column(TIMESTAMP, comment="before the first attempt")
    settled_at: Mapped[datetime | None] = mapped_column(TIMESTAMP, comment="when it left pending")
    error_message: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.UniqueConstraint("livemode", "customer_id", "metric_type", "slot_start", "number"),
        sa.UniqueConstraint("livemode", "identifier"),
        sa.CheckConstraint("state in ('pending', 'sent', 'rejected', 'invoiced')", name="state_known"),
        sa.CheckConstraint("quantity <> 0", name="says_something"),
        sa.CheckConstraint("(state = 'pending') = (settled_at is null)", name="settled_has_time"),
        sa.Index("ix_stripe_meter_ledger_pending", "id", postgresql_where=sa.text("state = 'pending'")),
    )


class InvoiceLedgerEntry(Base):
    """One invoice item of ours: so much more (or less) money of one line of `marts.invoice_lines`."""

    __tablename__ = "stripe_invoice_ledger"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    livemode: Mapped[bool] = mapped_column(sa.Boolean)
    customer_id: Mapped[str] = mapped_column(sa.Text)
    stripe_customer_id: Mapped[str] = mapped_column(sa.Text)
    line_type: Mapped[str] = mapped_column(sa.Text)
    metric_type: Mapped[str] = mapped_column(sa.Text, comment="empty for a subscription's price")
    period_start: Mapped[datetime] = mapped_column(TIMESTAMP)
    period_end: Mapped[datetime] = mapped_column(TIMESTAMP)
    number: Mapped[int] = mapped_column(sa.Integer, comment="of the entry for its line, from 1")
    amount_cents: Mapped[int] = mapped_column(sa.BigInteger, comment="difference, in minor units")
    currency: Mapped[str] = mapped_column(sa.Text)
    state: Mapped[str] = mapped_column(sa.Text)
    stripe_id: Mapped[str | None] = mapped_column(sa.Text, comment="of the invoice item, once it is known")
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP)
    settled_at: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    error_message: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.UniqueConstraint(
            "livemode", "customer_id", "line_type", "metric_type", "period_start", "number",
            name="uq_stripe_invoice_ledger_line",
        ),
        sa.CheckConstraint("state in ('pending', 'sent', 'rejected')", name="state_known"),
        sa.CheckConstraint("amount_cents <> 0", name="says_something"),
        sa.CheckConstraint("(state = 'pending') = (settled_at is null)", name="settled_has_time"),
    )  # fmt: skip
