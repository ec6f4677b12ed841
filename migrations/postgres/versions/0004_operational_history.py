"""history of subscriptions, and a queue of the rows that the warehouse has not copied yet

Revision ID: 0004_operational_history
Revises: 0003_operator_keys
"""

import sqlalchemy as sa
from alembic import op

revision = "0004_operational_history"
down_revision = "0003_operator_keys"
branch_labels = None
depends_on = None

# Tables that the warehouse copies, and the column that names a row.
COPIED = {
    "customers": "id",
    "subscriptions": "id",
    "subscription_changes": "id",
    "payments": "id",
    "events": "id",
    "email_log": "id",
    "webhook_inbox": "id",
}
TIMESTAMP = sa.DateTime(timezone=True)

TERMS = (
    "plan_type", "status", "base_price_cents", "currency", "included_impressions", "included_api_calls",
    "included_data_transfer_gb", "platform_fee_basis_points", "platform_fee_minimum_cents",
)  # fmt: skip
# Written by the database, so that a change made by hand is history too. Who sets `updated_at` says by it from
# when the new terms hold; a hand that left it alone meant now. Both triggers fire for the former, and the
# second finds that the newest row says it already.
RECORD_CHANGE = f"""
create function record_subscription_change() returns trigger language plpgsql as $$
begin
    if not exists (
        select from (
            select {", ".join(TERMS)} from subscription_changes
            where subscription_id = new.id order by id desc limit 1
        ) as newest
        where ({", ".join(f"newest.{name}" for name in TERMS)})
            is not distinct from ({", ".join(f"new.{name}" for name in TERMS)})
    ) then
        insert into subscription_changes (subscription_id, customer_id, effective_at, {", ".join(TERMS)})
        values (
            new.id,
            new.customer_id,
            case
                when tg_op = 'INSERT' then new.started_at
                when new.status = 'canceled' then new.cancelled_at
                when tg_argv[0] = 'told' then new.updated_at
                else clock_timestamp()
            end,
            {", ".join(f"new.{name}" for name in TERMS)}
        );
    end if;
    return null;
end
$$
"""
# The key alone: the copy reads the row as it stands then, so a row that changed often is copied once.
NOTE_CHANGED_ROW = """
create function note_changed_row() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        insert into changed_rows (table_name, row_key) values (tg_table_name, (to_jsonb(old) ->> tg_argv[0]));
    end if;
    if tg_op = 'INSERT' or (tg_op = 'UPDATE' and to_jsonb(new) -> tg_argv[0] <> to_jsonb(old) -> tg_argv[0]) then
        insert into changed_rows (table_name, row_key) values (tg_table_name, (to_jsonb(new) ->> tg_argv[0]));
    end if;
    return null;
end
$$
"""
# Truncating fires no row trigger; without a mark the next copy is a whole one.
FORGET_COPY = """
create function forget_copy() returns trigger language plpgsql as $$
begin
    delete from copy_marks where table_name = tg_table_name;
    return null;
end
$$
"""


def upgrade() -> None:
    for column in (
        sa.Column("included_api_calls", sa.BigInteger(), comment="of this customer; null: the plan's"),
        sa.Column("included_data_transfer_gb", sa.BigInteger(), comment="of this customer; null: the plan's"),
        sa.Column(
            "platform_fee_basis_points", sa.Integer(), comment="of the highest band by contract; null: its own"
        ),
        sa.Column(
            "platform_fee_minimum_cents", sa.BigInteger(), server_default="0", nullable=False,
            comment="least platform fee of a month by contract",
        ),
    ):  # fmt: skip
        op.add_column("subscriptions", column)
    op.create_check_constraint(
        op.f("ck_subscriptions_platform_fee_in_range"),
        "subscriptions",
        "platform_fee_basis_points between 100 and 150",
    )
    op.create_check_constraint(
        op.f("ck_subscriptions_platform_fee_minimum_positive"), "subscriptions", "platform_fee_minimum_cents >= 0"
    )
    op.create_table(
        "subscription_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("effective_at", TIMESTAMP, nullable=False),
        sa.Column("plan_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("base_price_cents", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("included_impressions", sa.BigInteger(), nullable=False),
        sa.Column("included_api_calls", sa.BigInteger(), nullable=True),
        sa.Column("included_data_transfer_gb", sa.BigInteger(), nullable=True),
        sa.Column("platform_fee_basis_points", sa.Integer(), nullable=True),
        sa.Column("platform_fee_minimum_cents", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscription_changes")),
        sa.ForeignKeyConstraint(
            ["subscription_id"], ["subscriptions.id"], ondelete="CASCADE",
            name=op.f("fk_subscription_changes_subscription_id_subscriptions"),
        ),
    )  # fmt: skip
    op.create_index(
        op.f("ix_subscription_changes_subscription_id"), "subscription_changes", ["subscription_id", "effective_at"]
    )
    op.execute(RECORD_CHANGE)
    op.execute(
        "create trigger record_change_1_told after insert or update of updated_at on subscriptions "
        "for each row execute function record_subscription_change('told')"
    )
    op.execute(
        "create trigger record_change_2_by_hand after update on subscriptions "
        "for each row execute function record_subscription_change('by_hand')"
    )
    # What was changed before is not known; each begins with the terms that it has now.
    op.execute(
        "insert into subscription_changes (subscription_id, customer_id, effective_at, plan_type, status, "
        "base_price_cents, currency, included_impressions, platform_fee_minimum_cents) "
        "select id, customer_id, started_at, plan_type, "
        "case when status = 'canceled' then 'active' else status end, "
        "base_price_cents, currency, included_impressions, platform_fee_minimum_cents from subscriptions"
    )
    op.create_table(
        "changed_rows",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changed_rows")),
    )
    op.create_index("ix_changed_rows_table_name", "changed_rows", ["table_name", "id"])
    op.create_table(
        "copy_marks",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="of the last copy, from 1"),
        sa.Column("token", sa.Text(), nullable=False, comment="the warehouse must hold the same"),
        sa.PrimaryKeyConstraint("table_name", name=op.f("pk_copy_marks")),
    )
    op.execute(NOTE_CHANGED_ROW)
    op.execute(FORGET_COPY)
    for table, key in COPIED.items():
        op.execute(
            f"create trigger note_changed_row after insert or update or delete on {table} "
            f"for each row execute function note_changed_row('{key}')"
        )
        op.execute(
            f"create trigger forget_copy after truncate on {table} "
            "for each statement execute function forget_copy()"
        )


def downgrade() -> None:
    for table in COPIED:
        op.execute(f"drop trigger note_changed_row on {table}")
        op.execute(f"drop trigger forget_copy on {table}")
    op.execute("drop trigger record_change_1_told on subscriptions")
    op.execute("drop trigger record_change_2_by_hand on subscriptions")
    for function in ("record_subscription_change", "note_changed_row", "forget_copy"):
        op.execute(f"drop function {function}()")
    for table in ("copy_marks", "changed_rows", "subscription_changes"):
        op.drop_table(table)
    for name in ("platform_fee_minimum_positive", "platform_fee_in_range"):
        op.drop_constraint(op.f(f"ck_subscriptions_{name}"), "subscriptions", type_="check")
    for column in (
        "platform_fee_minimum_cents", "platform_fee_basis_points", "included_data_transfer_gb", "included_api_calls",
    ):  # fmt: skip
        op.drop_column("subscriptions", column)
