"""Which columns a copy of an operational table has, in which exact types, and how far the two tables differ.

Belongs here: comparing a table's columns in PostgreSQL with those of its copy in ClickHouse. Does not belong
here: moving any row (`table_copy.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import polars as pl
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

# Columns of every copy that tell of the copy, not of the row.
BOOKKEEPING = ("copy_number", "is_deleted", "snapshot_at")

_COLUMNS = sa.text(
    "select attname, format_type(atttypid, null), not attnotnull from pg_attribute "
    "where attrelid = to_regclass(:table) and attnum > 0 and not attisdropped"
)
_WRAPPED = re.compile(r"(?:LowCardinality|Nullable)\((.*)\)")
_SMALLINT = {"smallint": pl.Int16}
_INTEGER = _SMALLINT | {"integer": pl.Int32}
_BIGINT = _INTEGER | {"bigint": pl.Int64}
# ClickHouse's type to those of PostgreSQL that it holds without loss, and the form in which rows travel.
_FORMS: Mapping[str, Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "String": {"text": pl.String, "character varying": pl.String, "bytea": pl.Binary},
    "Int16": _SMALLINT,
    "Int32": _INTEGER,
    "Int64": _BIGINT,
    "Bool": {"boolean": pl.Boolean},
    "DateTime64(6, 'UTC')": {"timestamp with time zone": pl.Datetime("us", "UTC")},
}


class SchemaDrift(RuntimeError):
    """A column that the copy needs is gone, or holds what the copy can't; the message names it."""


@dataclass(frozen=True, slots=True)
class CopiedColumns:
    """The columns that travel.

    Attributes
    ----------
    key, key_type : str
        The column that names a row, and its type in PostgreSQL.
    schema : mapping of str to a Polars type
        Of every column that is copied, the key among them.
    fingerprint : str
        Another one means that rows which did not change may have to be copied again.
    missing : tuple of str
        Columns of PostgreSQL that the copy lacks and that are not left out on purpose.
    """

    key: str
    key_type: str
    schema: Mapping[str, pl.DataType | type[pl.DataType]]
    fingerprint: str
    missing: tuple[str, ...]


def compare_columns(
    connection: sa.Connection, client: Client, table: str, left_out: Collection[str]
) -> CopiedColumns:
    """Columns of `raw.<table>`, each with the form in which PostgreSQL's rows fit it.

    Raises
    ------
    SchemaDrift
        If a column of the copy has none in PostgreSQL, or one whose values it can't hold.
    """
    source: dict[str, tuple[str, bool]] = {
        name: (type_, is_nullable)
        for name, type_, is_nullable in connection.execute(_COLUMNS, {"table": table}).tuples()
    }
    copy = client.query(
        "select name, type, is_in_sorting_key from system.columns where database = 'raw' and "
        "table = {table:String} order by position",
        parameters={"table": table},
    ).result_rows
    columns = [(name, type_) for name, type_, _ in copy if name not in BOOKKEEPING]
    [key] = [name for name, _, is_key in copy if is_key]
    problems = [
        problem for name, type_ in columns if (problem := _problem(name, type_, source.get(name))) is not None
    ]
    if problems:
        raise SchemaDrift(
            f"raw.{table} can't be copied: {'; '.join(problems)}. The old copy stays. Bring the column back, "
            f"or change raw.{table} to fit in a new file of migrations/clickhouse; the next copy is whole"
        )
    described = json.dumps([(name, type_, source[name]) for name, type_ in columns])
    return CopiedColumns(
        key=key,
        key_type=source[key][0],
        schema={name: _FORMS[_unwrapped(type_)][source[name][0]] for name, type_ in columns},
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
        missing=tuple(name for name in source if name not in dict(columns) and name not in left_out),
    )


def _unwrapped(type_: str) -> str:
    """`LowCardinality(Nullable(String))` to `String`."""
    while inner := _WRAPPED.fullmatch(type_):
        type_ = inner[1]
    return type_


def _problem(name: str, type_: str, source: tuple[str, bool] | None) -> str | None:
    if source is None:
        return f"PostgreSQL has no column {name!r} any more"
    source_type, is_nullable = source
    if source_type not in _FORMS.get(_unwrapped(type_), {}):
        return f"column {name!r} is {source_type} in PostgreSQL, which {type_} can't hold"
    if is_nullable and "Nullable(" not in type_:
        # Null would arrive as the type's default, without a word.
        return f"column {name!r} may be null in PostgreSQL, which {type_} can't hold"
    return None
