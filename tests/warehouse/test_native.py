"""Native blocks by revision: chDB's own blocks revised, and read by the parsers of two foreign clients."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_connect.driver.ctypes import RespBuffCls
from clickhouse_connect.driver.query import QueryContext
from clickhouse_connect.driver.transform import NativeTransform
from clickhouse_driver.bufferedreader import BufferedReader  # type: ignore[import-untyped]
from clickhouse_driver.context import Context  # type: ignore[import-untyped]
from clickhouse_driver.streams.native import BlockInputStream  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.native import (
    LAST_REVISION,
    Column,
    RevisedBlocks,
    described,
    describing,
    revise_document,
)
from apex_pipelines.platform.warehouse.native_layout import layout_of

INFO = bytes.fromhex("010002ffffffff00")
CONNECT, GO = 54405, 54460  # what clickhouse-connect and clickhouse-go ask for

# chDB takes one data folder a process, and is asked in one of its own.
ASK = """
import base64, json, sys
from chdb import connect
settings = (
    "allow_suspicious_low_cardinality_types", "allow_suspicious_variant_types", "enable_time_time64_type",
    "allow_experimental_nullable_tuple_type",
)
connection = connect(":memory:?implicit_select=0&" + "&".join(f"{name}=1" for name in settings))
for line in sys.stdin:
    kind, text = json.loads(line)
    try:
        if kind == "Native":
            with connection.send_query(text, kind) as stream:
                answer = [block.bytes() for block in stream]
        else:
            answer = [connection.query(text, kind.removeprefix("whole ")).bytes()]
        print(json.dumps([base64.b64encode(one).decode() for one in answer]), flush=True)
    except Exception as error:
        print(json.dumps(str(error)), flush=True)
connection.close()
"""


class Engine:
    """chDB, asked line by line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, kind: str, text: str) -> list[bytes]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([kind, text]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, str):
            raise AssertionError(f"{text}: {answer}")
        return [base64.b64decode(one) for one in answer]

    def columns(self, query: str) -> list[Column]:
        [rows] = self.ask("JSONCompactEachRow", describing(query.encode()).decode())
        return described(rows)

    def blocks(self, query: str) -> tuple[list[Column], list[bytes]]:
        return self.columns(query), self.ask("Native", query)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    assert engine.process.stdin
    engine.process.stdin.close()
    assert engine.process.wait() == 0


def revised(revision: int, columns: Sequence[Column], blocks: Sequence[bytes]) -> list[bytes]:
    reviser = RevisedBlocks(revision, columns)
    return [reviser.revise(block) for block in blocks]


def read_by_connect(data: bytes, *, block_info: bool) -> Any:
    """clickhouse-connect's reading of a whole body."""
    context = QueryContext()
    context.block_info = block_info
    source = RespBuffCls(SimpleNamespace(gen=iter([data]), close=lambda *_: None))  # type: ignore[no-untyped-call]
    return NativeTransform.parse_response(source, context)


def in_utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)


def types_and_rows_of_connect(data: bytes, *, block_info: bool) -> tuple[list[str], list[str]]:
    """The same, as texts, in which NaN equals NaN; an instant is the same with a zone and without."""
    result = read_by_connect(data, block_info=block_info)
    rows = [repr([in_utc(value) for value in row]) for row in result.result_rows]
    return [each.name for each in result.column_types], rows


class InMemory(BufferedReader):  # type: ignore[misc]
    """What clickhouse-driver reads from, over bytes instead of a socket."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self.data = data

    def read_into_buffer(self) -> None:
        if not self.data:
            raise EOFError
        self.buffer, self.data = bytearray(self.data), b""
        self.current_buffer_size = len(self.buffer)


def types_and_values_of_driver(data: bytes, revision: int) -> tuple[list[str], str]:
    """clickhouse-driver's reading of one block, which must be all of `data`."""
    context = Context()
    context.settings = {}
    context.client_settings = {
        "use_numpy": False, "strings_as_bytes": True, "strings_encoding": "utf-8", "opentelemetry": None,
        "input_format_null_as_default": False, "namedtuple_as_json": False,
    }  # fmt: skip
    context.server_info = SimpleNamespace(
        used_revision=revision, revision=revision, get_timezone=lambda: "UTC"
    )
    reader = InMemory(data)
    block = BlockInputStream(reader, context).read()
    with pytest.raises(EOFError):
        reader.read(1)
    return [each for _, each in block.columns_with_types], repr(block.data)


LEAVES = [
    "UInt8", "UInt16", "UInt32", "UInt64", "UInt128", "UInt256", "Int8", "Int16", "Int32", "Int64", "Int128",
    "Int256", "Float32", "Float64", "Bool", "Date", "Date32", "DateTime", "DateTime('Asia/Shanghai')",
    "DateTime64(3)", "DateTime64(6, 'America/New_York')", "Decimal(9, 2)", "Decimal(18, 4)", "Decimal(38, 3)",
    "Decimal(76, 5)", "UUID", "IPv4", "IPv6", "Enum8('it\\'s), (JSON' = -2, 'a' = 1)", "Enum16('x' = 300)",
    "FixedString(5)", "String",
]  # fmt: skip
LOW = [
    "String",
    "Nullable(String)",
    "FixedString(3)",
    "UInt32",
    "Nullable(Int64)",
    "Date",
    "DateTime('Asia/Tokyo')",
]
# Types that generateRandom does not know, each with an expression over `number`.
OTHERS = {
    "BFloat16": "number / 3",
    "Time": "toTime(number % 86400)",
    "Time64(6)": "toTime64(number / 7, 6)",
    "IntervalWeek": "toIntervalWeek(number)",
    "Nullable(Nothing)": "NULL",
    "Array(Nothing)": "[]",
    "Map(Nothing, Nothing)": "map()",
    "Tuple()": "tuple()",
    "Array(Tuple())": "arrayMap(x -> tuple(), range(number % 3))",
    "SimpleAggregateFunction(anyLast, String)": "toString(number)",
    "QBit(BFloat16, 17)": "arrayMap(x -> number + x, range(17))",
    "QBit(Float32, 3)": "[number, 1, 2]",
    "QBit(Float64, 8)": "arrayMap(x -> number + x, range(8))",
    "Variant(String, UInt8)": "if(number % 3 = 0, NULL, toString(number))::Nullable(String)",
    "Variant(Array(LowCardinality(String)), Map(String, UInt8), UInt8)":
        "if(number % 2, [toString(number), '']::Array(LowCardinality(String))"
        "::Variant(Array(LowCardinality(String)), Map(String, UInt8), UInt8), (number % 256)::UInt8)",
    "Geometry": "if(number % 2, (1., 2.)::Point::Geometry, [(1., 2.), (3., number)]::Ring::Geometry)",
    "Nested(a UInt8, `b c` Tuple(JSON String, d LowCardinality(String)))":
        "arrayMap(x -> (x, (toString(x), 'y')), range(number % 4))",
}  # fmt: skip
GENERATED = [
    *LEAVES,
    *(f"LowCardinality({each})" for each in LOW),
    "Point", "Ring", "LineString", "MultiLineString", "Polygon", "MultiPolygon",
    "Nullable(Tuple(a UInt8, b String))",
    "Array(LowCardinality(Nullable(String)))",
    "Map(LowCardinality(String), Array(Nullable(String)))",
    "Tuple(a String, `b c` Tuple(x LowCardinality(String), y Array(Array(Decimal(9, 2)))))",
    "Array(Map(String, Tuple(String, Nullable(UUID))))",
]  # fmt: skip
# What no walk is for; what stands behind is found by its name and type.
UNWALKED = {
    "Dynamic": "if(number % 2, number::Dynamic, toString(number)::Dynamic)",
    "JSON(max_dynamic_paths=2, a UInt8)": """concat('{"a":1,"b', toString(number % 5), '":"x"}')""",
    "Array(JSON)": """['{"a":[{"b":1}]}']""",
    "AggregateFunction(uniq, UInt64)": "arrayReduce('uniqState', range(number % 9)::Array(UInt64))",
}


def literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def generated(structure: str, rows: int, seed: int = 7, block_rows: int = 65409) -> str:
    source = f"generateRandom({literal(structure)}, {seed}, 200, 5)"
    return f"select * from {source} limit {rows} settings max_block_size = {block_rows}"


def framed(expression: str, rows: int) -> str:
    """A column between a zone before it and a zone behind it, in blocks of at most 100 rows."""
    zone = "toDateTime(number, 'Asia/Shanghai')"
    return (
        f"select {zone} as before, {expression} as x, {zone} as behind from numbers({rows}) "
        f"settings max_block_size = 100"
    )


def check_all_that_is_known(columns: Sequence[Column], block: bytes) -> None:
    """Every column is walked, to exactly the end; at each revision only what must differ does."""
    document = revise_document(CONNECT, block + block)
    assert document == (INFO + block) * 2
    go, go_later = revised(GO, columns, [block])[0], revised(LAST_REVISION, columns, [block])[0]
    assert go.startswith(INFO)
    assert go_later == INFO[:-1] + b"\x03\x00\x00" + go[len(INFO) :]
    zones = sum(len(each.type) - len("DateTime") for each in columns if each.type.startswith("DateTime("))
    assert len(go) == len(INFO) + len(block) + zones + len(columns)


@pytest.mark.parametrize("type_name", GENERATED)
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_every_generated_type_is_walked_to_its_end(engine: Engine, type_name: str, rows: int) -> None:
    columns, blocks = engine.blocks(generated(f"x {type_name}, y {type_name}", rows, block_rows=100))
    assert columns == [Column("x", type_name), Column("y", type_name)]
    assert len(blocks) == -(-rows // 100)
    for block in blocks:
        check_all_that_is_known(columns, block)


@pytest.mark.parametrize("type_name", OTHERS)
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_every_other_type_is_walked_to_its_end(engine: Engine, type_name: str, rows: int) -> None:
    expression = f"CAST({OTHERS[type_name]}, {literal(type_name)})"
    columns, blocks = engine.blocks(framed(expression, rows))
    assert columns[1].type == type_name
    assert len(blocks) == -(-rows // 100)
    for block in blocks:
        check_all_that_is_known(columns, block)


@pytest.mark.parametrize("type_name", UNWALKED)
@pytest.mark.parametrize("rows", [1, 300])
def test_a_column_behind_one_without_a_walk_is_found(engine: Engine, type_name: str, rows: int) -> None:
    expression = f"CAST({UNWALKED[type_name]}, {literal(type_name)})"
    columns, blocks = engine.blocks(framed(expression, rows))
    assert columns[1].type == type_name
    assert layout_of(type_name) is None
    zone = b"\x19DateTime('Asia/Shanghai')"
    for block in blocks:
        assert revised(CONNECT, columns, [block]) == [INFO + block.replace(b"\x08DateTime", zone)]
        with_byte = block.replace(b"\x08DateTime", zone + b"\x00")
        data = type_name.encode() + b"%s"
        with_byte = with_byte.replace(data % b"", data % b"\x00", 1)
        assert revised(GO, columns, [block]) == [INFO + with_byte]
        with pytest.raises(QueryError, match="Can't find the end of column x"):
            revise_document(CONNECT, block)


# clickhouse-driver does not understand every name that may stand in a type, nor a comma inside a map's.
TAME = [each for each in LEAVES if "it\\'s" not in each]
KEYS = ["String", "UInt16", "LowCardinality(String)"]
VALUES = [each for each in TAME if "," not in each]
structures = st.recursive(
    st.sampled_from([*TAME, *(f"LowCardinality({each})" for each in LOW)]),
    lambda inner: st.one_of(
        st.builds("Array({})".format, inner),
        st.builds("Map({}, {})".format, st.sampled_from(KEYS), st.sampled_from(VALUES)),
        st.builds("Tuple({}, {})".format, inner, inner),
        st.builds("Tuple(a {}, b {})".format, inner, inner),
        st.builds("Nullable({})".format, st.sampled_from(TAME)),
    ),
    max_leaves=5,
    # In one type, clickhouse-driver hands the scale of the first to the second.
).filter(lambda each: not ("DateTime64" in each and "Decimal" in each))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(types=st.lists(structures, min_size=1, max_size=5), rows=st.integers(1, 40), seed=st.integers(1, 99))
def test_foreign_clients_read_the_same_values_and_the_zones(
    engine: Engine, types: list[str], rows: int, seed: int
) -> None:
    structure = ", ".join(f"c{at} {each}" for at, each in enumerate(types))
    columns, blocks = engine.blocks(generated(structure, rows, seed, block_rows=16))
    assert [each.type for each in columns] == types
    whole, again = b"".join(blocks), b"".join(revised(CONNECT, columns, blocks))
    names, values_then = types_and_rows_of_connect(again, block_info=True)
    assert values_then == types_and_rows_of_connect(whole, block_info=False)[1]
    zones = [name for name in types if name.startswith("DateTime(")]
    assert [name for name in names if name.startswith("DateTime(")] == zones
    for block, for_go in zip(blocks, revised(GO, columns, blocks), strict=True):
        check_all_that_is_known(columns, block)
        before, values = types_and_values_of_driver(block, 0)
        assert before == ["DateTime" if name in zones else name for name in types]
        # Zones that are told are no part of the values, which are instants.
        bare = for_go
        for zone in set(zones):
            bare = bare.replace(bytes([len(zone)]) + zone.encode() + b"\x00", b"\x08DateTime\x00")
        assert types_and_values_of_driver(bare, GO) == (before, values)
        assert types_and_values_of_driver(for_go, GO)[0] == types


def test_each_revision_adds_what_it_should(engine: Engine) -> None:
    columns, [block] = engine.blocks("select toDateTime(1676369730, 'Asia/Shanghai') as dt, 'é' as s, 7 as n")
    zone, value = b"\x19DateTime('Asia/Shanghai')", bytes.fromhex("425feb63")
    plain = b"\x03\x01\x02dt%b%b\x01s\x06String%b\x02\xc3\xa9\x01n\x05UInt8%b\x07"
    bare, with_zone = (plain % (each, value, b"", b"") for each in (b"\x08DateTime", zone))
    with_byte = plain % (zone + b"\x00", value, b"\x00", b"\x00")
    expected = {
        0: bare,
        1: INFO + bare,
        54336: INFO + bare,
        54337: INFO + with_zone,
        54404: INFO + with_zone,
        54405: INFO + with_zone,
        54453: INFO + with_zone,
        54454: INFO + with_byte,
        54479: INFO + with_byte,
        54480: bytes.fromhex("010002ffffffff030000") + with_byte,
        LAST_REVISION: bytes.fromhex("010002ffffffff030000") + with_byte,
    }
    for revision, block_then in expected.items():
        assert revised(revision, columns, [block]) == [block_then]


@pytest.mark.parametrize("revision", [-1, LAST_REVISION + 1, 54500, 1 << 63])
def test_an_unknown_revision_is_refused_by_its_number(revision: int) -> None:
    for attempt in (lambda: RevisedBlocks(revision, []), lambda: revise_document(revision, b"")):
        with pytest.raises(
            QueryError, match=f"client_protocol_version {revision} .* {LAST_REVISION}"
        ) as caught:
            attempt()
        assert (caught.value.name, caught.value.status) == ("NOT_IMPLEMENTED", 501)


@pytest.mark.parametrize(
    ("revision", "ok", "type_name"),
    [
        (54404, 54405, "LowCardinality(String)"),
        (54404, 0, "Array(Tuple(a LowCardinality(String)))"),
        (54452, 54451, "AggregateFunction(1, sumMap, Array(UInt8), Array(UInt8))"),
        (54473, 54472, "Array(JSON(a UInt8))"),
        (54473, 54472, "Dynamic(max_types=4)"),
    ],
)
def test_a_type_that_would_have_another_form_is_refused_from_there_on(
    revision: int, ok: int, type_name: str
) -> None:
    RevisedBlocks(ok, [Column("x", type_name)])
    with pytest.raises(QueryError, match="Column x of type") as caught:
        RevisedBlocks(revision, [Column("x", type_name)])
    assert caught.value.status == 501


def test_words_are_not_taken_for_types() -> None:
    named = [Column("x", "Tuple(JSON UInt8, Dynamic Enum8('JSON' = 1), `LowCardinality` String)")]
    RevisedBlocks(LAST_REVISION, named)
    RevisedBlocks(1, named)


def test_states_come_under_the_name_that_fits_them(engine: Engine) -> None:
    columns, [block] = engine.blocks("select sumMapState([1], [2]) as s, toDateTime(0, 'UTC') as d")
    assert columns[0].type.startswith("AggregateFunction(1, ")
    assert revised(CONNECT, columns, [block]) == [
        INFO + block.replace(b"\x08DateTime", b"\x0fDateTime('UTC')")
    ]


def test_an_end_that_data_hides_is_refused(engine: Engine) -> None:
    query = "select [unhex('{}')]::Array(Dynamic) as x, toDateTime(0, 'UTC') as d".format
    columns, [block] = engine.blocks(query(b"\x01d\x08Date".hex()))
    assert revised(CONNECT, columns, [block])[0].endswith(b"\x01d\x0fDateTime('UTC')" + bytes(4))
    columns, [block] = engine.blocks(query(b"\x01d\x08DateTime".hex()))
    with pytest.raises(QueryError, match=r"column x of type Array\(Dynamic\) ends"):
        revised(CONNECT, columns, [block])


def test_names_of_any_kind_are_passed_on(engine: Engine) -> None:
    query = (
        "select 1 as `a\\nb`, 'x' as `ü'\"`, 5::Dynamic as `long "
        + "name " * 60
        + "`, toDateTime(0, 'UTC') as d, "
        "toDateTime(0, 'UTC') as d, map('k', (1, 2)::Tuple(q UInt8, `w (,` UInt8)) as m"
    )
    columns, [block] = engine.blocks(query)
    assert columns[-1] == Column("m", "Map(String, Tuple(q UInt8, `w (,` UInt8))")
    assert len(revised(GO, columns, [block])[0]) == len(INFO) + len(block) + 6 + 2 * len("('UTC')")


@pytest.mark.parametrize(
    "setting",
    [
        "describe_compact_output = 1",
        "describe_include_subcolumns = 1",
        "describe_compact_output = 1, describe_include_subcolumns = 1",
        "print_pretty_type_names = 0",
    ],
)
def test_what_a_description_has_more_or_less_does_not_matter(engine: Engine, setting: str) -> None:
    text = describing(b"select 1 as a, tuple(1, 'x')::Tuple(b UInt8, c String) as t -- why not").decode()
    [rows] = engine.ask("JSONCompactEachRow", f"{text} settings {setting}")
    assert described(rows) == [Column("a", "UInt8"), Column("t", "Tuple(b UInt8, c String)")]


def test_a_result_without_rows_stays_without_a_byte(engine: Engine) -> None:
    columns, blocks = engine.blocks("select toDateTime(0, 'UTC') as d where 0")
    assert blocks == []
    assert revised(CONNECT, columns, [b""]) == [b""]
    assert revise_document(GO, b"") == b""


@pytest.mark.parametrize("revision", [CONNECT, GO])
def test_a_block_without_rows_has_its_columns(revision: int) -> None:
    columns = [Column("j", "JSON"), Column("d", "DateTime('UTC')")]
    block = b"\x02\x00\x01j\x04JSON\x01d\x08DateTime"
    byte = b"\x00" if revision == GO else b""
    expected = INFO + b"\x02\x00\x01j\x04JSON" + byte + b"\x01d\x0fDateTime('UTC')" + byte
    assert revised(revision, columns, [block]) == [expected]


def test_a_block_that_is_not_as_described_is_never_passed_on(engine: Engine) -> None:
    columns, [block] = engine.blocks("select 'x' as s, toDateTime(0, 'UTC') as d")
    for other in (
        columns[1:],
        [Column("s", "FixedString(1)"), columns[1]],
        [Column("s", "String"), Column("d", "DateTime64(3)"), Column("e", "DateTime('UTC')")],
    ):
        with pytest.raises(QueryError, match="not as its query was described"):
            revised(CONNECT, other, [block])
    for end in range(1, len(block) - 4):
        with pytest.raises(QueryError, match="not as its query was described"):
            revised(CONNECT, columns, [block[:end]])
        with pytest.raises(QueryError):
            revise_document(CONNECT, block[:end])


@pytest.mark.parametrize(
    "statement",
    ["show databases", "describe table system.one", "explain select 1", "exists table system.one",
     "show columns from system.tables", "explain pipeline select 1", "show settings like '%'",
     "show functions"],
)  # fmt: skip
def test_small_answers_are_revised_whole(engine: Engine, statement: str) -> None:
    [document] = engine.ask("whole Native", statement)
    before = types_and_rows_of_connect(document, block_info=False)
    assert before[1]
    assert types_and_rows_of_connect(revise_document(CONNECT, document), block_info=True) == before
    assert (
        types_and_rows_of_connect(revise_document(CONNECT, document * 3), block_info=True)[1] == before[1] * 3
    )
    names, values = types_and_values_of_driver(revise_document(GO, document), GO)
    assert (names, values) == types_and_values_of_driver(document, 0)
    assert revise_document(0, document) == document


def test_what_clickhouse_connect_probes_for_is_there(engine: Engine) -> None:
    columns, blocks = engine.blocks("SELECT 1 AS check")
    assert revised(CONNECT, columns, blocks)[0][8:16] == b"\x01\x01\x05check"
    columns, blocks = engine.blocks("select toDateTime(1676369730, 'Asia/Shanghai') as dt")
    [[value]] = read_by_connect(b"".join(revised(CONNECT, columns, blocks)), block_info=True).result_rows
    assert value.isoformat() == "2023-02-14T18:15:30+08:00"
    assert str(value.tzinfo) == "Asia/Shanghai"
