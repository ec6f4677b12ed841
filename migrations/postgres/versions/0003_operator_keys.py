"""keys of the operator belong to no customer

Revision ID: 0003_operator_keys
Revises: 0002_webhook_inbox
"""

import sqlalchemy as sa
from alembic import op

revision = "0003_operator_keys"
down_revision = "0002_webhook_inbox"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("api_keys", "customer_id", existing_type=sa.Text(), nullable=True,
                    comment="null: a key of the operator")
    op.create_check_constraint(
        op.f("ck_api_keys_operator_has_no_customer"),
        "api_keys",
        "('operator' = any (scopes)) = (customer_id is null)",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_api_keys_operator_has_no_customer"), "api_keys", type_="check")
    op.execute("delete from api_keys where customer_id is null")
    op.alter_column("api_keys", "customer_id", existing_type=sa.Text(), nullable=False,
                    comment=None, existing_comment="null: a key of the operator")
