"""webhook inbox

Revision ID: 0002_webhook_inbox
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002_webhook_inbox"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_inbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False, comment="the provider's; a repeat is stored once"),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column(
            "payload", sa.LargeBinary(), nullable=False, comment="JSON in UTF-8, as it was signed"
        ),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("processed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "provider in ('stripe', 'resend')", name=op.f("ck_webhook_inbox_provider_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_inbox")),
        sa.UniqueConstraint("provider", "event_id", name=op.f("uq_webhook_inbox_provider_event_id")),
    )
    op.create_index(
        "ix_webhook_inbox_pending",
        "webhook_inbox",
        ["id"],
        postgresql_where=sa.text("processed_at is null"),
    )


def downgrade() -> None:
    op.drop_table("webhook_inbox")
