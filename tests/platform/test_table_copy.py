"""Copies of operational tables are equal to them, whatever happened to either store, on real stores."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import (
    NewSubscription,
    PaymentAttempt,
    record_payments,
    subscribe,
    sync_plans,
)
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.defs.warehouse.copies import COPIES
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.copy_columns import SchemaDrift
from apex_pipelines.platform.table_copy import CopyFailed, TableCopy, copy_table
from apex_pipelines.settings import PROJECT_ROOT, Settings, child_environment
from tests.platform.operational_rows import HOSTILE, Operations, assert_equal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MANY = (
    "insert into customers (id, name, email, source, created_at) "
    "select 'c' || n, 'n', 'e', 's', now() from generate_series(cast(:first as int), cast(:last as int)) n"
)


@pytest.fixture
def operations(engine: sa.Engine, warehouse: Client) -> Operations:
    return Operations(engine, warehouse, random.Random(1))


def copy_customers(operations: Operations) -> TableCopy:
    return copy_table(operations.engine, operations.client, "customers", NOW)


class Killed(BaseException):
    """Stands for a SIGKILL: no handler of ours catches it, and PostgreSQL rolls back as it would then."""


class DyingClient:
    """A client whose process dies at its n-th statement, before or after the server has done it."""

    def __init__(self, client: Client, dies_at: int, *, is_done: bool) -> None:
        self._client, self._left, self._is_done = client, dies_at, is_done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._is_done:
                raise Killed
            result = method(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("seed", range(3))
def test_the_copy_is_the_table_after_any_history(engine: sa.Engine, warehouse: Client, seed: int) -> None:
    operations = Operations(engine, warehouse, chance := random.Random(seed))
    done: Counter[str] = Counter()
    for _ in range(14):
        for _ in range(chance.randint(0, 3)):
            operations.change()
        if chance.random() < 0.25:
            operations.back_up()
        if chance.random() < 0.2:
            operations.restore()
            done["restored"] += 1
        if chance.random() < 0.5:
            dying = DyingClient(warehouse, chance.randint(1, 9), is_done=chance.random() < 0.5)
            try:
                copy_table(engine, cast(Client, dying), "customers", NOW)
            except Killed:
                done["killed"] += 1
            for _ in range(chance.randint(0, 2)):
                operations.change()
        copy = copy_customers(operations)
        done["whole" if copy.whole_because else "incremental"] += 1
        assert_equal(engine, warehouse)
    print(seed, dict(done))
    assert min(done[what] for what in ("killed", "restored", "whole", "incremental")) > 0


@pytest.mark.parametrize("is_first_copy", [True, False])
def test_a_copy_killed_at_any_statement_is_made_up_for_by_the_next(
    operations: Operations, is_first_copy: bool
) -> None:
    engine, warehouse = operations.engine, operations.client
    operations.sql(MANY, first=1, last=20)
    if not is_first_copy:
        copy_customers(operations)
    killed_at = 0
    for statement in range(1, 30):
        for is_done in (False, True):
            if is_first_copy:
                operations.sql("truncate customers cascade")
                operations.sql(MANY, first=1, last=20)
            operations.sql(
                "update customers set name = :name where id <= 'c15'", name=f"{statement} {is_done}"
            )
            operations.sql("delete from customers where id = (select max(id) from customers)")
            operations.sql(MANY, first=100 * statement + is_done, last=100 * statement + is_done)
            dying = DyingClient(warehouse, statement, is_done=is_done)
            try:
                copy_table(engine, cast(Client, dying), "customers", NOW)
            except Killed:
                killed_at = statement
            # What the dead copy had noted is stale by now, and must lose.
            operations.sql("update customers set name = name || '!' where id > 'c12'")
            operations.sql("delete from customers where id = (select min(id) from customers)")
            copy_customers(operations)
            assert_equal(engine, warehouse)
        if killed_at < statement:
            break
    assert killed_at >= (9 if is_first_copy else 6), "it has fewer statements than there are steps"


def test_copies_at_once_and_sigkills_lose_nothing_and_hold_nobody_up(
    operations: Operations, settings: Settings, record_property: Any
) -> None:
    kills = 3
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.platform.copy_process"],
            env=child_environment(settings), cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "copied\n"
        until = time.monotonic() + operations.chance.uniform(0.2, 0.8)
        while time.monotonic() < until:
            operations.change()
            copy_customers(operations)
        operations.change()
        assert process.poll() is None, "two at once did not get on"
        process.kill()
        process.wait()
        process.stdout.close()
        began = time.monotonic()
        copy_customers(operations)
        assert time.monotonic() - began < 10, "the lock outlived its owner"
        assert_equal(operations.engine, operations.client)
    record_property("sigkills", {"copy": kills})


def test_what_commits_while_a_copy_runs_comes_with_the_next(operations: Operations) -> None:
    operations.sql(MANY, first=1, last=3)
    with operations.engine.begin() as connection:
        connection.execute(sa.text("update customers set name = 'late' where id = 'c1'"))
        assert copy_customers(operations).rows == 3
    assert operations.client.command("select name from raw.customers final where id = 'c1'") == "n"
    copy = copy_customers(operations)
    assert (copy.copied, copy.whole_because) == (1, None)
    assert_equal(operations.engine, operations.client)


def test_a_result_says_what_was_done(operations: Operations) -> None:
    operations.sql(MANY, first=1, last=10)
    first = copy_customers(operations)
    assert (first.rows, first.copied, first.deleted) == (10, 10, 0)
    assert first.whole_because == "it is the first copy"
    operations.sql("update customers set name = 'm' where id in ('c1', 'c2', 'c3')")
    operations.sql("delete from customers where id in ('c3', 'c4')")
    second = copy_customers(operations)
    assert (second.rows, second.copied, second.deleted, second.whole_because) == (8, 2, 2, None)
    third = copy_customers(operations)
    assert (third.rows, third.copied, third.deleted, third.whole_because) == (8, 0, 0, None)
    operations.client.command("insert into raw.customers (id, copy_number) values ('stranger', 1)")
    assert copy_customers(operations).whole_because == "8 rows in PostgreSQL, 9 in the copy"
    operations.client.command("truncate table raw.customers")
    assert copy_customers(operations).whole_because == "rows of the last copy are not there"
    operations.sql("truncate customers cascade")
    assert copy_customers(operations) == TableCopy(
        0, 0, 0, "the stores don't agree on which copy was the last", first.missing_columns
    )


def test_every_copied_table_arrives_in_exact_types(engine: sa.Engine, warehouse: Client) -> None:
    at = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
    with engine.begin() as connection:
        sync_plans(connection)
        customer = create_customer(connection, NewCustomer(HOSTILE[9], "a@example.com", company_size=3), at)
        subscribe(connection, NewSubscription(customer, "indie", at), at)
        attempts = [
            PaymentAttempt(customer, "in_1", n, n == 2, 2**62, at, None if n == 2 else "x") for n in (1, 2)
        ]
        record_payments(connection, attempts)
        for statement in (
            "insert into events (event_type, customer_id, created_at, not_before, attempts, outcome) "
            "values ('email.a', :customer, :at, :at, 3, null), ('email.b', null, :at, :at, 0, 'sent')",
            "insert into email_log "
            "(event_id, customer_id, email_type, recipient, subject, provider, sent_at) "
            "select id, customer_id, event_type, 'r', :subject, 'outbox', :at from events",
            "insert into webhook_inbox (provider, event_id, event_type, payload, received_at) "
            "values ('stripe', 'evt', 't', decode('00ff7b0a5c', 'hex'), :at)",
            "insert into stripe_meter_ledger (livemode, customer_id, stripe_customer_id, subscription_id, "
            "metric_type, usage_date, period_start, slot_start, number, quantity, identifier, state, "
            "created_at) "
            "values (true, :customer, 'cus_1', 'sub_1', 'impressions', '2024-02-29', :at, :at, 1, "
            "-4611686018427387904, 'apex-1', 'pending', :at)",
            "insert into stripe_invoice_ledger (livemode, customer_id, stripe_customer_id, line_type, "
            "metric_type, period_start, period_end, number, amount_cents, currency, state, stripe_id, "
            "created_at, settled_at) "
            "values (false, :customer, 'cus_1', 'overage', 'impressions', :at, :at, 2, -1, 'usd', 'sent', "
            "'ii_1', :at, :at)",
        ):
            parameters = {"customer": customer, "at": at, "subject": HOSTILE[7]}
            connection.execute(sa.text(statement), parameters)
    for table in COPIES:
        copy = copy_table(engine, warehouse, table.name, NOW, left_out=table.left_out)
        assert copy.missing_columns == ()
        assert copy.rows == copy.copied > 0
        assert_equal(engine, warehouse, table.name)
    with engine.connect() as connection:
        noted = connection.scalars(
            sa.text("select tgrelid::regclass::text from pg_trigger where tgname = 'note_changed_row'")
        )
        assert set(noted) == {table.name for table in COPIES}, "a change of the others is not noted"


def test_fifty_thousand_rows_and_none(operations: Operations) -> None:
    assert copy_customers(operations).rows == 0
    operations.sql(MANY, first=1, last=50_001)
    assert copy_customers(operations).copied == 50_001
    operations.sql("update customers set name = 'other'")
    operations.sql("delete from customers where id like '%7'")
    copy = copy_customers(operations)
    assert (copy.copied + copy.deleted, copy.whole_because) == (50_001, None)
    assert_equal(operations.engine, operations.client)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table customers drop column country", "'country' any more"),
        ("alter table customers alter column company_size type bigint", "'company_size' is bigint"),
        ("alter table customers alter column name drop not null", "'name' may be null"),
    ],
)
def test_a_column_that_no_longer_fits_stops_the_copy_and_leaves_the_old_one(
    operations: Operations, change: str, named: str
) -> None:
    operations.sql(MANY, first=1, last=3)
    copy_customers(operations)
    operations.sql(change)
    operations.sql("update customers set email = 'new'")
    with pytest.raises(SchemaDrift, match=named) as raised:
        copy_customers(operations)
    assert "migrations/clickhouse" in str(raised.value)
    held = operations.client.query("select count(), any(email) from raw.customers final").result_rows
    assert held == [(3, "e")]


def test_a_new_column_is_reported_until_the_copy_has_it_and_then_filled(operations: Operations) -> None:
    client = operations.client
    operations.sql(MANY, first=1, last=3)
    operations.sql("alter table customers add column tier text not null default 'gold'")
    left_out = ("time_zone", "marketing_consent")

    def copy() -> TableCopy:
        return copy_table(operations.engine, client, "customers", NOW, left_out=left_out)

    assert copy().missing_columns == ("tier",)
    client.command("alter table raw.customers add column tier String after country")
    try:
        filled = copy()
        assert filled.whole_because == "columns have changed"
        assert filled.missing_columns == ()
        assert_equal(operations.engine, client)
    finally:
        client.command("alter table raw.customers drop column tier")


@pytest.mark.parametrize("year", [1899, 2300])
def test_a_time_that_the_warehouse_can_not_hold_is_refused_by_name(operations: Operations, year: int) -> None:
    operations.sql(MANY, first=1, last=1)
    operations.sql("update customers set created_at = make_timestamptz(:year, 6, 1, 0, 0, 0)", year=year)
    with pytest.raises(CopyFailed, match=f"created_at is {year}-.*row 'c1'"):
        copy_customers(operations)


def test_a_lossy_copy_is_never_swapped_in(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    operations.sql(MANY, first=1, last=5)
    copy_customers(operations)
    operations.sql(MANY, first=6, last=9)
    insert = operations.client.insert_arrow
    monkeypatch.setattr(
        operations.client, "insert_arrow",
        lambda table, rows, **options: insert(table, rows.slice(0, rows.num_rows - 1), **options),
    )  # fmt: skip
    with pytest.raises(CopyFailed, match="copy of customers: 9 rows in PostgreSQL, 8 stored"):
        copy_customers(operations)
    monkeypatch.undo()
    assert copy_customers(operations).rows == 9
    assert_equal(operations.engine, operations.client)


def test_a_folder_of_the_release_before_gets_whole_copies_in_the_new_tables(operations: Operations) -> None:
    client = operations.client
    client.command("drop table raw.customers sync")
    old = clickhouse.MIGRATIONS / "0002_operational_snapshots.sql"
    client.command(old.read_text().split(";\n")[0])
    client.command("insert into raw.customers (id, name) values ('gone', 'since long')")
    newer = [path.name for path in clickhouse.MIGRATIONS.glob("*.sql") if path.name >= "0007"]
    client.command(
        "delete from raw.schema_migrations where name in {names:Array(String)}", parameters={"names": newer}
    )
    assert set(clickhouse.migrate(client)) == set(newer)
    operations.sql(MANY, first=1, last=3)
    copy_customers(operations)
    assert_equal(operations.engine, client)
