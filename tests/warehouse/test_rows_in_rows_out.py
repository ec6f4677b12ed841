"""What goes in comes out: every row, in every format and compression, in one frame or in many."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import brotli  # type: ignore[import-untyped]
import httpx
import lz4.frame  # type: ignore[import-untyped]
import psutil
import pytest
from backports import zstd

from tests.warehouse.conftest import PASSWORD, Front

COMPRESS = {
    "gzip": gzip.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "br": lambda data: brotli.compress(data, quality=1),
}


def new_table(front: Front, name: str, columns: str = "a UInt64, s String") -> str:
    front.value(f"create or replace table {name} ({columns}) engine = MergeTree order by tuple()")
    return name


def checksum(front: Front, table: str) -> str:
    return front.value(f"select count(), sum(a), sum(cityHash64(a, s)) from {table}")


def expected(front: Front, rows: int) -> str:
    return front.value(f"select count(), sum(a), sum(cityHash64(a, s)) from "
                       f"(select number as a, toString(number) as s from numbers({rows}))")  # fmt: skip


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
@pytest.mark.parametrize("rows", [1, 65_535, 65_536, 65_537, 300_000])
def test_clickhouse_connect_gets_back_what_it_inserted(front: Front, compress: str | bool, rows: int) -> None:
    table = new_table(front, f"native_{rows}_{str(compress).lower()}")
    client = front.client(compress=compress)
    data = [range(rows), [str(n) for n in range(rows)]]
    inserted = client.insert(table, data, column_names=["a", "s"], column_oriented=True)
    assert inserted.written_rows == rows
    assert checksum(front, table) == expected(front, rows)
    back = client.query(f"select a, s from {table} order by a").result_columns
    assert (list(back[0]), list(back[1])) == (list(data[0]), data[1])
    client.close()


@pytest.mark.parametrize(
    "format_name",
    ["Native", "RowBinary", "JSONEachRow", "CSV", "TabSeparated", "Parquet", "Arrow", "ArrowStream"],
)
@pytest.mark.parametrize("rows", [1, 65_537, 200_000])
def test_every_format_goes_out_and_comes_in_again(front: Front, format_name: str, rows: int) -> None:
    table = new_table(front, f"again_{format_name}_{rows}")
    out = front.request(
        f"select number as a, toString(number) as s from numbers({rows}) format {format_name}"
    )
    assert out.status_code == 200
    response = front.request(f"insert into {table} format {format_name}", content=out.content)
    assert response.status_code == 200, response.text
    assert json.loads(response.headers["X-ClickHouse-Summary"])["written_rows"] == str(rows)
    assert checksum(front, table) == expected(front, rows)


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd"])
@pytest.mark.parametrize("frames", [1, 2, 1000])
def test_many_frames_in_one_body_are_all_read(front: Front, encoding: str, frames: int) -> None:
    table = new_table(front, f"frames_{encoding}_{frames}")
    pieces = [b"%d,%d\n" % (n, n) for n in range(10_000)]
    step = len(pieces) // frames
    body = b"".join(
        COMPRESS[encoding](b"".join(pieces[start : start + step])) for start in range(0, len(pieces), step)
    )
    response = front.request(
        f"insert into {table} format CSV", content=body, headers={"Content-Encoding": encoding}
    )
    assert response.status_code == 200, response.text
    assert checksum(front, table) == expected(front, len(pieces))


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd", "br"])
def test_query_and_data_may_be_compressed_together(front: Front, encoding: str) -> None:
    table = new_table(front, f"together_{encoding}")
    body = COMPRESS[encoding](f"insert into {table} format CSV\n".encode() + b"1,1\n0,0\n")
    response = front.request(content=body, headers={"Content-Encoding": encoding})
    assert response.status_code == 200, response.text
    assert checksum(front, table) == expected(front, 2)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_results_are_compressed_when_asked_for(front: Front, encoding: str) -> None:
    query = "select number from numbers(300000)"
    plain = front.request(query)
    headers = {"Accept-Encoding": encoding}
    assert "Content-Encoding" not in front.request(query, headers=headers).headers
    for settings in ({"enable_http_compression": 1}, {"enable_http_compression": 1, "wait_end_of_query": 1}):
        response = front.request(query, headers=headers, params=settings)
        assert response.headers["Content-Encoding"] == encoding
        # httpx undoes the others by itself, and has no zstd of its own.
        content = zstd.decompress(response.content) if encoding == "zstd" else response.content
        assert content == plain.content


@pytest.mark.parametrize("damage", ["cut", "garbage", "second frame cut", "not gzip"])
def test_a_damaged_body_is_refused_and_nothing_is_inserted(front: Front, damage: str) -> None:
    table = new_table(front, "damaged")
    frame = gzip.compress(b"1,1\n" * 10_000)
    body = {
        "cut": frame[:-9],
        "garbage": frame[:50] + b"\x00" * 20 + frame[70:],
        "second frame cut": frame + frame[:-9],
        "not gzip": b"1,1\n",
    }[damage]
    headers = {"Content-Encoding": "gzip"}
    response = front.request(f"insert into {table} format CSV", content=body, headers=headers)
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (400, "271")
    assert "gzip" in response.text
    assert front.value(f"select count() from {table}") == "0"


def test_a_bad_row_at_the_end_inserts_nothing_and_names_the_row(front: Front) -> None:
    table = new_table(front, "bad_row")
    response = front.request(f"insert into {table} format CSV", content=b"1,1\n" * 5_000 + b"x,1\n")
    assert response.status_code == 400
    assert "row 5001" in response.text or "at row" in response.text
    assert front.value(f"select count() from {table}") == "0"


def test_an_unknown_encoding_is_refused(front: Front) -> None:
    response = front.request("select 1", content=b"", headers={"Content-Encoding": "snappy"})
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (501, "48")


def test_one_body_is_one_block(front: Front) -> None:
    table = new_table(front, "one_block")
    body = b"".join(b"%d,%d\n" % (n, n) for n in range(400_000))
    front.value(f"insert into {table} format CSV", content=body)
    parts = "select count() from system.parts where table = 'one_block' and active and level = 0"
    assert front.value(parts) == "1"
    assert checksum(front, table) == expected(front, 400_000)


def test_data_inside_the_statement_is_taken_as_it_stands(front: Front) -> None:
    table = new_table(front, "inline")
    front.value(f"insert into {table} (a, s) values (1 + 1, 'a;b'), (3, '--')")
    front.value(f"insert into {table} format CSV\n4,x;\n")
    front.value(f"insert into {table} select 5, 'FORMAT CSV'")
    assert front.value(f"select groupArray(s) from (select s from {table} order by a)") == (
        "['a;b','--','x;','FORMAT CSV']"
    )


def test_memory_stays_flat_while_much_goes_in_and_out(front: Front) -> None:
    """Of 1.2 GB in and 1.2 GB out, only the engine's own blocks (128 MB) are ever held."""
    front.value("create or replace table much (a UInt64, s String) engine = Null")
    process = psutil.Process(front.process.pid)
    line = b"12345678,%s\n" % (b"x" * 1000)
    before = process.memory_info().rss
    peak = 0

    def body() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(1200):
            peak = max(peak, process.memory_info().rss)
            yield line * 1000

    front.value("insert into much format CSV", content=body())
    auth = ("default", PASSWORD)
    query = "select number, repeat('x', 1000) from numbers(1200000) format JSONEachRow"
    received = 0
    with httpx.stream("POST", front.url, content=query, auth=auth, timeout=60) as response:
        for piece in response.iter_raw():
            received += len(piece)
            peak = max(peak, process.memory_info().rss)
    assert received > 1_200_000_000
    assert peak - before < 700_000_000, f"{(peak - before) / 1e6:.0f} MB more than before"
