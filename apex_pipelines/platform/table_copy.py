"""Copies operational tables from PostgreSQL into ClickHouse's `raw` database, by what has changed.

Belongs here: one copy of one table, from the keys that triggers noted in `changed_rows` to the mark in both
stores. Does not belong here: which tables are copied (`defs/warehouse/copies.py`), and whether their columns
fit (`copy_columns.py`). What happens when it is killed between two steps: docs/decisions/0016.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT
from apex_pipelines.platform.copy_columns import CopiedColumns, compare_columns

# Rows are read in small batches and inserted in large ones; whatever comes first ends an insert.
READ_ROWS = 1_000
INSERT_ROWS = 50_000
INSERT_BYTES = 64_000_000
KEYS_PER_QUERY = 10_000
# What DateTime64 holds; a later year would come out as another one.
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
LATEST = datetime(2299, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


class CopyFailed(RuntimeError):
    """A copy is not what PostgreSQL holds; the message names the table and what differs."""


@dataclass(frozen=True, slots=True)
class TableCopy:
    """What one copy did.

    Attributes
    ----------
    rows : int
        Rows of the table, in both stores.
    copied, deleted : int
        Rows that were brought, and rows that were marked as deleted.
    whole_because : str or None
        Why every row was brought; None: only those that had changed.
    missing_columns : tuple of str
        Columns of PostgreSQL that the copy lacks.
    """

    rows: int
    copied: int
    deleted: int
    whole_because: str | None
    missing_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    """The newest copy that the warehouse knows to be complete; number 0 and no token before the first."""

    number: int
    token: str


def copy_table(
    engine: sa.Engine, client: Client, table: str, copied_at: datetime, *, left_out: Collection[str] = ()
) -> TableCopy:
    """Make `raw.<table>`, read with `final`, equal to the operational table as one snapshot shows it.

    Brings the rows noted in `changed_rows`; the whole table, in a twin that is exchanged with the old copy,
    when the two stores don't agree on what was copied last. Safe to repeat after a kill at any point.

    Parameters
    ----------
    copied_at : datetime
        Aware instant for `snapshot_at`; the order of copies does not depend on it.
    left_out : collection of str
        Columns of PostgreSQL that the copy lacks on purpose.

    Raises
    ------
    SchemaDrift
        If a column that the copy needs is gone or has another type.
    CopyFailed
        If a value does not fit, or even a whole copy has another number of rows than PostgreSQL.
    """
    with _alone(engine, table):
        mark = _mark_of_warehouse(client, table)
        newest = _newest_number(client, table)
        number = _next_number(engine, table, above=max(mark.number, newest))
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            # Takes no snapshot yet, and keeps a truncate, which snapshots don't see, out of what follows.
            connection.execute(sa.text(f"lock table {table} in access share mode"))
            columns = compare_columns(connection, client, table, left_out)
            copy = _Copy(connection, client, table, columns, number, copied_at)
            # Exactly those that the snapshot shows; they are gone when all is done, and not before.
            keys = copy.take_changed_keys()
            whole_because = _reason_for_whole_copy(mark, newest, copy.mark_of_postgres(), columns)
            copied = deleted = 0
            rows = copy.rows_in_postgres()
            if whole_because is None:
                copied, deleted = copy.bring(keys)
                stored = copy.rows_in(f"raw.{table}")
                if stored != rows:
                    whole_because = f"{rows} rows in PostgreSQL, {stored} in the copy"
            if whole_because is not None:
                copied, deleted = copy.bring_all(expected=rows), 0
            if copied or deleted or whole_because is not None:
                token = f"{secrets.token_hex(16)}.{columns.fingerprint}"
                mark_warehouse(client, table, _Mark(number, token), copied_at)
                copy.mark_postgres(token)
            connection.commit()
    return TableCopy(rows, copied, deleted, whole_because, columns.missing)


def mark_warehouse(client: Client, table: str, mark: _Mark, copied_at: datetime) -> None:
    """Say in the warehouse that this copy is complete; PostgreSQL says it right after."""
    client.insert(
        "raw.copy_marks",
        [(table, mark.number, mark.token, copied_at)],
        column_names=["table_name", "number", "token", "copied_at"],
        settings=DURABLE_INSERT,
    )


@contextmanager
def _alone(engine: sa.Engine, table: str) -> Iterator[None]:
    """Nobody else copies this table meanwhile; ends with the connection, so the killed hold nobody up."""
    with engine.begin() as connection:
        lock = "select pg_advisory_xact_lock(hashtext('apex.table_copy'), hashtext(:table))"
        connection.execute(sa.text(lock), {"table": table})
        yield


def _mark_of_warehouse(client: Client, table: str) -> _Mark:
    found = client.query(
        "select number, token from raw.copy_marks where table_name = {table:String} "
        "order by number desc limit 1",
        parameters={"table": table},
    ).result_rows
    return _Mark(*found[0]) if found else _Mark(0, "")


def _newest_number(client: Client, table: str) -> int:
    """Number of the newest copy that brought a row, complete or not; 0 for an empty copy."""
    return int(client.query(f"select max(copy_number) from raw.{table}").result_rows[0][0])  # noqa: S608


def _next_number(engine: sa.Engine, table: str, *, above: int) -> int:
    """A number that no attempt had before, since rows of a killed one may still arrive: theirs must lose."""
    with engine.begin() as connection:
        return int(
            connection.execute(
                sa.text(
                    "insert into copy_marks (table_name, number, token) values (:table, :least, '') "
                    "on conflict (table_name) do update "
                    "set number = greatest(copy_marks.number + 1, excluded.number) returning number"
                ),
                {"table": table, "least": above + 1},
            ).scalar_one()
        )


def _reason_for_whole_copy(mark: _Mark, newest: int, token: str, columns: CopiedColumns) -> str | None:
    if not mark.token:
        return "it is the first copy"
    if mark.token != token:
        return "the stores don't agree on which copy was the last"
    if not token.endswith(f".{columns.fingerprint}"):
        return "columns have changed"
    if newest < mark.number:
        return "rows of the last copy are not there"
    return None


@dataclass(frozen=True, slots=True)
class _Copy:
    """One copy under way, in one snapshot of PostgreSQL."""

    connection: sa.Connection
    client: Client
    table: str
    columns: CopiedColumns
    number: int
    copied_at: datetime

    def take_changed_keys(self) -> list[str]:
        taken = sa.text(
            "with taken as (delete from changed_rows where table_name = :table returning row_key) "
            "select distinct row_key from taken"
        )
        return list(self.connection.scalars(taken, {"table": self.table}))

    def mark_of_postgres(self) -> str:
        """Token of the last copy that PostgreSQL knows to be complete; empty for none."""
        select = sa.text("select token from copy_marks where table_name = :table")
        return self.connection.scalar(select, {"table": self.table}) or ""

    def mark_postgres(self, token: str) -> None:
        mark = sa.text(
            "insert into copy_marks (table_name, number, token) values (:table, :number, :token) "
            "on conflict (table_name) do update set number = excluded.number, token = excluded.token"
        )
        self.connection.execute(mark, {"table": self.table, "number": self.number, "token": token})

    def rows_in_postgres(self) -> int:
        count = sa.select(sa.func.count()).select_from(sa.table(self.table))
        return self.connection.execute(count).scalar_one()

    def rows_in(self, copy: str) -> int:
        return int(self.client.query(f"select count() from {copy} final").result_rows[0][0])  # noqa: S608

    def bring(self, keys: list[str]) -> tuple[int, int]:
        """Bring the rows of `keys` as they stand, and mark those that are gone; how many of each."""
        key = self.columns.key
        is_chosen = f"{key} = any(cast(cast(:keys as text[]) as {self.columns.key_type}[]))"
        copied = deleted = 0
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chosen = keys[start : start + KEYS_PER_QUERY]
            gone = pl.DataFrame({key: chosen}).cast({key: self.columns.schema[key]})
            for frame in self._read(is_chosen, keys=chosen):
                self._insert(f"raw.{self.table}", frame)
                gone = gone.join(frame, on=key, how="anti")
                copied += frame.height
            self._insert(f"raw.{self.table}", gone, is_deleted=1)
            deleted += gone.height
        return copied, deleted

    def bring_all(self, *, expected: int) -> int:
        """Replace the copy by all rows of the table; how many there are.

        Raises
        ------
        CopyFailed
            If the warehouse holds another number of rows afterwards; the old copy stays.
        """
        twin = f"raw.{self.table}__incoming"
        self.client.command(f"drop table if exists {twin} sync")
        self.client.command(f"create table {twin} as raw.{self.table}")
        for frame in self._read():
            self._insert(twin, frame)
        stored = self.rows_in(twin)
        if stored != expected:
            raise CopyFailed(
                f"copy of {self.table}: {expected} rows in PostgreSQL, {stored} stored; the old copy stays"
            )
        self.client.command(f"exchange tables {twin} and raw.{self.table}")
        self.client.command(f"drop table {twin} sync")
        return stored

    def _read(self, where: str = "true", **parameters: list[str]) -> Iterator[pl.DataFrame]:
        """Rows of the table, in frames of the size of an insert; at least one, which may be empty."""
        table = sa.table(self.table, *(sa.column(name) for name in self.columns.schema))
        select = table.select().where(sa.text(where)).execution_options(yield_per=READ_ROWS)
        held = pl.DataFrame(schema=self.columns.schema)
        for rows in self.connection.execute(select, parameters).partitions():
            held.vstack(pl.DataFrame([tuple(row) for row in rows], held.schema, orient="row"), in_place=True)
            if held.height >= INSERT_ROWS or held.estimated_size() >= INSERT_BYTES:
                yield held
                held = held.clear()
        yield held

    def _insert(self, target: str, frame: pl.DataFrame, *, is_deleted: int = 0) -> None:
        if frame.is_empty():
            return
        self._refuse_wild_times(frame)
        rows = frame.with_columns(
            copy_number=pl.lit(self.number, pl.UInt64),
            is_deleted=pl.lit(is_deleted, pl.UInt8),
            snapshot_at=pl.lit(self.copied_at, pl.Datetime("us", "UTC")),
        )
        self.client.insert_arrow(
            target, rows.to_arrow(compat_level=pl.CompatLevel.oldest()), settings=DURABLE_INSERT
        )

    def _refuse_wild_times(self, frame: pl.DataFrame) -> None:
        for name in frame.select(pl.selectors.datetime()).columns:
            wild = frame.filter(~pl.col(name).is_between(EARLIEST, LATEST))
            if not wild.is_empty():
                raise CopyFailed(
                    f"copy of {self.table}: {name} is {wild[name][0]} in row {wild[self.columns.key][0]!r}, "
                    f"outside {EARLIEST.year} to {LATEST.year}; correct it in PostgreSQL"
                )
