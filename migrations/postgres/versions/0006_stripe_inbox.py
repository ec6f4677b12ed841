"""how far reading from Stripe has come, and what became of each webhook

Revision ID: 0006_stripe_inbox
Revises: 0005_stripe
"""

import sqlalchemy as sa
from alembic import op

revision = "0006_stripe_inbox"
down_revision = "0005_stripe"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)
ADDED = {
    "stripe_links": (
        sa.Column(
            "mirrored_at", TIMESTAMP, comment="when the state that our row shows was asked for; null: never"
        ),
        sa.Column(
            "mirrored_terms", sa.Text(), comment="what of it may be changed on either side, as Stripe had it then"
        ),
    ),
    "stripe_cursors": (
        sa.Column("position_at", TIMESTAMP, comment="when Stripe created that object"),
        sa.Column(
            "started_at", TIMESTAMP, comment="of the backfill, or of the last look at the event list; by our clock"
        ),
    ),
    "webhook_inbox": (
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="that failed"),
        sa.Column("not_before", TIMESTAMP, comment="of the next attempt"),
        sa.Column("outcome", sa.Text(), comment="of what is processed"),
        sa.Column("error_message", sa.Text(), comment="of the last attempt, or why not"),
    ),
}


def upgrade() -> None:
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(table, column._copy())
    op.create_check_constraint(
        op.f("ck_webhook_inbox_outcome_known"), "webhook_inbox", "outcome in ('done', 'ignored', 'failed')"
    )
    op.create_index(
        "ix_webhook_inbox_failed", "webhook_inbox", ["id"], postgresql_where=sa.text("outcome = 'failed'")
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_inbox_failed", "webhook_inbox")
    op.drop_constraint(op.f("ck_webhook_inbox_outcome_known"), "webhook_inbox", type_="check")
    for table, columns in ADDED.items():
        for column in columns:
            op.drop_column(table, column.name)
