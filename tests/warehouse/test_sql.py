"""How statements are cut into text, format and data."""

from __future__ import annotations

import pytest

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import replace_word, split_types
from apex_pipelines.platform.warehouse.sql import Kind, Statement, parse


def whole(text: bytes) -> Statement:
    statement = parse(text, complete=True)
    assert statement is not None
    return statement


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2\n", b"1,2\n"),
        (b"insert into t format CSV 1,2\n", b"1,2\n"),
        (b"/* FORMAT JSON */ -- x\n insert\tinto db.t (a, `b)`) -- VALUES\n FORMAT CSV\r\n1;2", b"1;2"),
        (b"INSERT INTO t (a) SETTINGS async_insert=1, x='FORMAT' FORMAT TSV\n\n1", b"\n1"),
        (b"INSERT INTO t FORMAT CSV SETTINGS format_csv_delimiter=';'\n1;2\n", b"1;2\n"),
        (b"INSERT INTO TABLE FUNCTION file('x', 'CSV', 'a Int8') FORMAT CSV\n1", b"1"),
        (b"INSERT INTO t FORMAT Native\n\x01\x00';\"--", b"\x01\x00';\"--"),
        (b"INSERT INTO format FORMAT RowBinary\nVALUES", b"VALUES"),
        (b"INSERT INTO t FORMAT CSV\nSETTINGS\n", b"SETTINGS\n"),
        (b"WITH 1 AS y INSERT INTO t (s) FORMAT TSV\nv;\n", b"v;\n"),
        (b"INSERT INTO t (a) VALUES (1), ('a;b')", b" (1), ('a;b')"),
    ],
)
def test_the_data_of_an_insert_begins_where_clickhouse_begins_it(text: bytes, data: bytes) -> None:
    statement = whole(text)
    assert statement.kind is Kind.INSERT
    assert text[statement.data_start :] == data
    # Whatever the pieces a body comes in, the decision is the same, and never made too early.
    for cut in range(len(text)):
        early = parse(text[:cut], complete=False)
        assert early is None or early == statement


@pytest.mark.parametrize(
    "text",
    [
        b"INSERT INTO t SELECT 1 AS format, 'FORMAT CSV'",
        b"INSERT INTO t (a) (SELECT 1)",
        b"WITH 13 AS insert INSERT INTO t SELECT insert",
        b"INSERT INTO t (a) WITH x AS (SELECT 1) SELECT * FROM x",
    ],
)
def test_an_insert_from_a_query_has_no_data(text: bytes) -> None:
    assert whole(text).kind is Kind.COMMAND
    assert parse(text, complete=False) is None


def test_input_is_found_wherever_the_query_calls_it() -> None:
    text = b"INSERT INTO t SELECT * FROM (SELECT a FROM input('a String, b Enum(\\'x\\')')) FORMAT CSV\n1,x\n"
    statement = whole(text)
    assert statement.kind is Kind.INSERT_FROM_INPUT
    assert statement.input_structure == "a String, b Enum('x')"
    assert statement.with_input("tmp").strip() == b"INSERT INTO t SELECT * FROM (SELECT a FROM `tmp`)"
    assert text[statement.data_start :] == b"1,x\n"


@pytest.mark.parametrize(
    ("text", "format_name", "rest"),
    [
        (b"SELECT 1", None, b"SELECT 1"),
        (b"SELECT 1; -- the end", None, b"SELECT 1"),
        (b"SELECT 'x' -- FORMAT CSV", None, b"SELECT 'x'"),
        (b"SELECT 1 FORMAT JSON;", "JSON", b"SELECT 1 "),
        (b"(SELECT 1) UNION ALL (SELECT 2) format TSV", "TSV", b"(SELECT 1) UNION ALL (SELECT 2) "),
        (b"SELECT format FROM t", None, b"SELECT format FROM t"),
        (b"SELECT 1 AS format", None, b"SELECT 1 AS format"),
        (b"SELECT $$a; FORMAT JSON$$", None, b"SELECT $$a; FORMAT JSON$$"),
        (b"WITH 13 AS insert SELECT insert", None, b"WITH 13 AS insert SELECT insert"),
        (b"WITH {INSERT:Int32} AS v SELECT v", None, b"WITH {INSERT:Int32} AS v SELECT v"),
    ],
)
def test_the_format_clause_is_told_from_names_literals_and_comments(
    text: bytes, format_name: str | None, rest: bytes
) -> None:
    statement = whole(text)
    assert (statement.kind, statement.format, statement.text) == (Kind.ROWS, format_name, rest)


def test_settings_behind_the_format_stay_behind_it() -> None:
    statement = whole(b"SELECT 1 FORMAT JSON SETTINGS max_threads = 1")
    written = statement.into_file("/dev/fd/9", "TSV")
    assert (
        written.split()
        == b"SELECT 1 INTO OUTFILE '/dev/fd/9' TRUNCATE FORMAT JSON SETTINGS max_threads = 1".split()
    )


@pytest.mark.parametrize("text", [b"", b" -- nothing\n", b"SELECT 1; SELECT 2", b"SELECT 1 INTO OUTFILE 'x'"])
def test_what_a_server_refuses_is_refused(text: bytes) -> None:
    with pytest.raises(QueryError):
        parse(text, complete=True)


def test_files_of_the_client_are_refused() -> None:
    with pytest.raises(QueryError, match="INFILE"):
        parse(b"INSERT INTO t FROM INFILE 'x' FORMAT CSV", complete=True)


def test_a_word_is_replaced_only_where_it_is_a_word() -> None:
    text = b"KILL QUERY WHERE query_id = 'query_id' -- query_id"
    assert replace_word(text, b"query_id", b"X") == b"KILL QUERY WHERE X = 'query_id' -- query_id"


def test_types_are_split_at_their_own_commas() -> None:
    assert split_types("Int32, Map(String, Array(UInt8)) ,Enum('a,b')") == [
        "Int32", "Map(String, Array(UInt8))", "Enum('a,b')",
    ]  # fmt: skip
