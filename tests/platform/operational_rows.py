"""Random changes of the operational table `customers`, by plain SQL as any hand may make them.

Belongs here: how rows come, change and go, and what both stores hold of them. Does not belong here: any copy.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import polars as pl
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from polars.testing import assert_frame_equal

from apex_pipelines.platform.copy_columns import BOOKKEEPING

# Text as nobody types it; PostgreSQL stores anything but NUL.
HOSTILE = [
    "", " ", "'", '"', "\\", "\\N", "\\0", "a\nb\r\n\tc", "\x01\x1f\x7f",
    "Zoë 🦊👩‍👩‍👧", "\u202e\ufeff", "NULL",
    "x" * 1_000_000,
]  # fmt: skip
BACKED_UP = ("customers", "changed_rows", "copy_marks")


class Operations:
    """The operational store of a test, with a backup of it and one of the warehouse."""

    def __init__(self, engine: sa.Engine, client: Client, chance: random.Random) -> None:
        self.engine, self.client, self.chance = engine, client, chance
        self.made = 0
        for table in BACKED_UP:
            self.sql(f"create table {table}_backup as table {table}")
        for table in ("customers", "copy_marks"):
            client.command(f"create or replace table default.{table}_backup as raw.{table}")

    def sql(self, statement: str, **parameters: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), parameters)

    def change(self) -> None:
        """One of the things that happen to a table."""
        self.chance.choice([self.insert, self.insert, self.update, self.update, self.delete, self.rename,
                            self.abandon, self.truncate])()  # fmt: skip

    def insert(self) -> None:
        for _ in range(self.chance.randint(1, 5)):
            self.made += 1
            self.sql(
                "insert into customers (id, name, email, source, company_size, country, created_at) "
                "values (:id, :name, 'e', 's', :size, :country, :at)",
                id=f"{self.chance.choice(HOSTILE[:-1])}{self.made}",
                name=self.chance.choice(HOSTILE),
                size=self.chance.choice([None, 0, 2**31 - 1]),
                country=self.chance.choice([None, "", "NL"]),
                at=datetime(1900, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.chance.randrange(10**16)),
            )

    def update(self) -> None:
        self.sql(
            "update customers set name = :name, company_size = :size where random() < :share",
            name=self.chance.choice(HOSTILE), size=self.chance.choice([None, 7]), share=self.chance.random(),
        )  # fmt: skip

    def delete(self) -> None:
        self.sql("delete from customers where random() < :share", share=self.chance.random() / 2)

    def rename(self) -> None:
        self.sql("update customers set id = id || 'r' where random() < 0.2")

    def abandon(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(sa.text("delete from customers"))
            connection.rollback()

    def truncate(self) -> None:
        if self.chance.random() < 0.3:
            self.sql("truncate customers cascade")

    def back_up(self) -> None:
        """Each store by itself, as backups are taken."""
        if self.chance.random() < 0.6:
            for table in BACKED_UP:
                self.sql(f"truncate {table}_backup")
                self.sql(f"insert into {table}_backup table {table}")
        else:
            for table in ("customers", "copy_marks"):
                self.client.command(f"truncate table default.{table}_backup")
                self.client.command(f"insert into default.{table}_backup select * from raw.{table}")

    def restore(self) -> None:
        """One of the two, so that the other knows of copies that this one does not."""
        if self.chance.random() < 0.6:
            with self.engine.begin() as connection:
                connection.execute(sa.text("set local session_replication_role = replica"))
                for table in BACKED_UP:
                    connection.execute(sa.text(f"delete from {table}"))
                    connection.execute(
                        sa.text(f"insert into {table} overriding system value table {table}_backup")
                    )
        else:
            for table in ("customers", "copy_marks")[: self.chance.choice([1, 2])]:
                self.client.command(f"truncate table raw.{table}")
                self.client.command(f"insert into raw.{table} select * from default.{table}_backup")


def assert_equal(engine: sa.Engine, client: Client, table: str = "customers") -> None:
    """The copy, read with `final`, is the table: each row, each column that is copied, to the microsecond."""
    copy = pl.DataFrame(client.query_arrow(f"select * from raw.{table} final order by id", use_strings=False))
    copy = copy.drop(BOOKKEEPING)
    with engine.connect() as connection:
        rows = connection.execute(sa.text(f"select {', '.join(copy.columns)} from {table}")).all()
    stored = [tuple(value.encode() if isinstance(value, str) else value for value in row) for row in rows]
    expected = pl.DataFrame(stored, schema=copy.schema, orient="row")
    assert_frame_equal(copy, expected.sort("id"))
