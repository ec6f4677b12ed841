"""who is who at Stripe, how far reading came, and what was sent

Revision ID: 0005_stripe
Revises: 0004_operational_history
"""

import sqlalchemy as sa
from alembic import op

revision = "0005_stripe"
down_revision = "0004_operational_history"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)
# Tables that the warehouse copies, with the triggers of 0004.
COPIED = ("stripe_meter_ledger", "stripe_invoice_ledger")


def upgrade() -> None:
    op.create_table(
        "stripe_links",
        sa.Column("object", sa.Text(), nullable=False, comment="type, as Stripe names it"),
        sa.Column("local_id", sa.Text(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("stripe_id", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("object", "local_id", "livemode", name=op.f("pk_stripe_links")),
        sa.UniqueConstraint("object", "stripe_id", "livemode", name=op.f("uq_stripe_links_object_stripe_id_livemode")),
    )
    op.create_table(
        "stripe_cursors",
        sa.Column("name", sa.Text(), nullable=False, comment="such as backfill:invoice, events"),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("position", sa.Text(), nullable=True, comment="id of the last object read; null: none yet"),
        sa.Column("finished_at", TIMESTAMP, nullable=True),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("name", "livemode", name=op.f("pk_stripe_cursors")),
    )
    op.create_table(
        "stripe_meter_ledger",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("stripe_customer_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("usage_date", sa.Date(), nullable=False, comment="UTC"),
        sa.Column("period_start", TIMESTAMP, nullable=False, comment="of the billing period"),
        sa.Column("slot_start", TIMESTAMP, nullable=False, comment="timestamp of the meter event"),
        sa.Column("number", sa.Integer(), nullable=False, comment="of the entry in its slot, from 1"),
        sa.Column("quantity", sa.BigInteger(), nullable=False, comment="difference, in storage units"),
        sa.Column("identifier", sa.Text(), nullable=False, comment="the meter event's; the same for every attempt"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("first_sent_at", TIMESTAMP, nullable=True, comment="before the first attempt"),
        sa.Column("settled_at", TIMESTAMP, nullable=True, comment="when it left pending"),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_meter_ledger")),
        sa.UniqueConstraint(
            "livemode", "customer_id", "metric_type", "slot_start", "number",
            name=op.f("uq_stripe_meter_ledger_livemode_customer_id_metric_type_slot_start_number"),
        ),
        sa.UniqueConstraint("livemode", "identifier", name=op.f("uq_stripe_meter_ledger_livemode_identifier")),
        sa.CheckConstraint(
            "state in ('pending', 'sent', 'rejected', 'invoiced')", name=op.f("ck_stripe_meter_ledger_state_known")
        ),
        sa.CheckConstraint("quantity <> 0", name=op.f("ck_stripe_meter_ledger_says_something")),
        sa.CheckConstraint(
            "(state = 'pending') = (settled_at is null)", name=op.f("ck_stripe_meter_ledger_settled_has_time")
        ),
    )  # fmt: skip
    op.create_index(
        "ix_stripe_meter_ledger_pending", "stripe_meter_ledger", ["id"],
        postgresql_where=sa.text("state = 'pending'"),
    )  # fmt: skip
    op.create_table(
        "stripe_invoice_ledger",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("stripe_customer_id", sa.Text(), nullable=False),
        sa.Column("line_type", sa.Text(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False, comment="empty for a subscription's price"),
        sa.Column("period_start", TIMESTAMP, nullable=False),
        sa.Column("period_end", TIMESTAMP, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="of the entry for its line, from 1"),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False, comment="difference, in minor units"),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stripe_id", sa.Text(), nullable=True, comment="of the invoice item, once it is known"),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("settled_at", TIMESTAMP, nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_invoice_ledger")),
        sa.UniqueConstraint(
            "livemode", "customer_id", "line_type", "metric_type", "period_start", "number",
            name="uq_stripe_invoice_ledger_line",
        ),
        sa.CheckConstraint("state in ('pending', 'sent', 'rejected')", name=op.f("ck_stripe_invoice_ledger_state_known")),
        sa.CheckConstraint("amount_cents <> 0", name=op.f("ck_stripe_invoice_ledger_says_something")),
        sa.CheckConstraint(
            "(state = 'pending') = (settled_at is null)", name=op.f("ck_stripe_invoice_ledger_settled_has_time")
        ),
    )  # fmt: skip
    for table in COPIED:
        op.execute(
            f"create trigger note_changed_row after insert or update or delete on {table} "
            "for each row execute function note_changed_row('id')"
        )
        op.execute(
            f"create trigger forget_copy after truncate on {table} "
            "for each statement execute function forget_copy()"
        )


def downgrade() -> None:
    for table in ("stripe_invoice_ledger", "stripe_meter_ledger", "stripe_cursors", "stripe_links"):
        op.drop_table(table)
