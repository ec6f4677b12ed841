"""What goes in comes out: every row, in every format and compression, in one frame or in many."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator

import brotli
import cramjam
import httpx
import lz4.block
import lz4.frame
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]

from apex_pipelines.platform.warehouse.blocks import new_block_encoder
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
    plain = front.request(query, headers={"Accept-Encoding": "identity"})
    headers = {"Accept-Encoding": encoding}
    off = {"enable_http_compression": 0}
    assert "Content-Encoding" not in front.request(query, headers=headers, params=off).headers
    for settings in ({}, {"enable_http_compression": 1}, {"wait_end_of_query": 1}):
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
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (500, "354")
    assert "gzip" in response.text
    assert front.value(f"select count() from {table}") == "0"


def test_a_bad_row_at_the_end_inserts_nothing_and_names_the_row(front: Front) -> None:
    table = new_table(front, "bad_row")
    response = front.request(f"insert into {table} format CSV", content=b"1,1\n" * 5_000 + b"x,1\n")
    assert response.status_code == 400
    assert "row 5001" in response.text or "at row" in response.text
    assert front.value(f"select count() from {table}") == "0"


@pytest.mark.parametrize(
    ("refusal", "code", "definition"),
    [
        ("constraint", "469", "(a UInt64, constraint small check a < 9) engine = MergeTree order by a"),
        ("partitions", "252", "(a UInt64) engine = MergeTree order by a partition by a"),
        ("view", "395", "(a UInt64) engine = MergeTree order by a"),
    ],
)
def test_what_a_table_refuses_is_an_error(front: Front, refusal: str, code: str, definition: str) -> None:
    front.value(f"create table refuses_{refusal} {definition}")
    if refusal == "view":
        front.value(
            "create materialized view refusing engine = MergeTree order by a "
            "as select throwIf(a = 9) as a from refuses_view"
        )
    response = front.request(
        f"insert into refuses_{refusal} format CSV", content=b"".join(b"%d\n" % n for n in range(300))
    )
    assert response.headers.get("X-ClickHouse-Exception-Code") == code, (
        f"answered {response.headers['X-ClickHouse-Summary']}, and the table has "
        + front.value(f"select count() from refuses_{refusal}")
    )
    assert response.status_code == 500


def test_an_unknown_encoding_is_refused(front: Front) -> None:
    response = front.request("select 1", content=b"", headers={"Content-Encoding": "compress"})
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


@pytest.mark.measures
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
    headers = {"Accept-Encoding": "identity"}
    with httpx.stream("POST", front.url, content=query, headers=headers, auth=auth, timeout=60) as response:
        for piece in response.iter_raw():
            received += len(piece)
            peak = max(peak, process.memory_info().rss)
    assert received > 1_200_000_000
    assert peak - before < 700_000_000, f"{(peak - before) / 1e6:.0f} MB more than before"


# -- every format in every encoding, in one frame and in many ----------------------------------------------

# Rows that need quoting, escaping and more than ASCII, of every length up to 30 bytes.
MATRIX_ROWS = """select number as a, concat(toString(number * 7919 % 10007), multiIf(
    number % 7 = 0, ' "quoted", and\\nbroken', number % 5 = 0, ' ünïcödé ✓',
    number % 3 = 0, '', '\\t\\\\')) as s
    from numbers({rows})"""
MATRIX_FORMATS = ["Native", "RowBinary", "JSONEachRow", "CSV", "Parquet", "Arrow"]
MATRIX_SIZES = [1, 65_535, 65_536, 65_537]
MANY = 7  # frames; the body is cut where it happens to be, in the middle of rows
FIVE_MILLION = 5_000_000

Codec = Callable[[bytes], bytes]


def snappy_block(plain: bytes) -> bytes:
    """As Hadoop frames it: lengths of a block and of its only part, big-endian, then raw snappy."""
    blocks = []
    for start in range(0, len(plain), 1 << 18):
        piece = plain[start : start + (1 << 18)]
        packed = bytes(cramjam.snappy.compress_raw(piece))
        blocks.append(struct.pack(">II", len(piece), len(packed)) + packed)
    return b"".join(blocks)


def clickhouse_blocks(plain: bytes) -> bytes:
    encoder = new_block_encoder("LZ4")
    return encoder.feed(plain) + encoder.finish()


def read_clickhouse_blocks(data: bytes) -> bytes:
    plain, start = [], 0
    while start < len(data):
        low, high, method, size, plain_size = struct.unpack_from("<QQBII", data, start)
        covered = data[start + 16 : start + 16 + size]
        assert divmod(CityHash128(covered), 1 << 64) == (low, high)
        assert method == 0x82
        plain.append(lz4.block.decompress(covered[9:], uncompressed_size=plain_size))
        start += 16 + size
    return b"".join(plain)


# What the warehouse reads is written by other libraries than its own where there are any: it decodes zlib's
# formats with zlib, and brotli, zstd and lz4 by the bindings that are imported here for nothing else.
REQUEST_ENCODINGS: dict[str, Codec] = {
    "identity": bytes,
    "gzip": lambda plain: gzip.compress(plain, 1),
    "deflate": lambda plain: zlib.compress(plain, 1),
    "br": lambda plain: bytes(cramjam.brotli.compress(plain, level=1)),
    "zstd": lambda plain: bytes(cramjam.zstd.compress(plain, level=1)),
    "lz4": lambda plain: bytes(cramjam.lz4.compress(plain, level=1)),
    "xz": lambda plain: lzma.compress(plain, preset=0),
    "bz2": lambda plain: bytes(cramjam.bzip2.compress(plain, level=1)),
    "snappy": snappy_block,
    "blocks": clickhouse_blocks,
}
RESPONSE_ENCODINGS: dict[str, Codec] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": lambda data: bytes(cramjam.brotli.decompress(data)),
    "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
    "lz4": lambda data: bytes(cramjam.lz4.decompress(data)),
    "xz": lzma.decompress,
    "bz2": bz2.decompress,
    "blocks": read_clickhouse_blocks,
}


def pieces_of(data: bytes, count: int) -> list[bytes]:
    cuts = [len(data) * number // count for number in range(count + 1)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


def encoded(plain: bytes, encoding: str, frames: int) -> bytes:
    """`plain` in as many frames; of brotli, which has none, in as many flushed pieces."""
    pieces = [piece for piece in pieces_of(plain, frames) if piece]
    if encoding == "br" and frames > 1:
        compressor = brotli.Compressor(quality=1)
        return bytes(
            b"".join(compressor.process(piece) + compressor.flush() for piece in pieces) + compressor.finish()
        )
    return b"".join(REQUEST_ENCODINGS[encoding](piece) for piece in pieces)


def counted(format_name: str, plain: bytes) -> int | None:
    """Rows in a result as somebody else's reader counts them; None where there is none."""
    if format_name == "Parquet":
        return int(pq.read_table(io.BytesIO(plain)).num_rows)
    if format_name == "Arrow":
        return int(pa.ipc.open_file(io.BytesIO(plain)).read_all().num_rows)
    if format_name == "JSONEachRow":
        return sum(1 for line in plain.splitlines() if isinstance(json.loads(line), dict))
    if format_name == "CSV":
        return sum(1 for _ in csv.reader(io.StringIO(plain.decode(), newline="")))
    return None


class Matrix:
    """The rows of the matrix on one front, each format and size exported plain only once."""

    def __init__(self, front: Front) -> None:
        # One for all: a client costs more than most of what is asked here.
        self._client = httpx.Client(base_url=front.url, auth=("default", PASSWORD), timeout=200)
        self._plain: dict[tuple[str, int], bytes] = {}
        self._expected: dict[int, str] = {}

    def close(self) -> None:
        self._client.close()

    def value(self, query: str) -> str:
        response = self._client.post("/", content=query)
        assert response.status_code == 200, response.text
        return response.text

    def checksum(self, source: str) -> str:
        return self.value(f"select count(), sum(a), sum(cityHash64(a, s)) from {source}")

    def expected(self, rows: int) -> str:
        if rows not in self._expected:
            self._expected[rows] = self.checksum(f"({MATRIX_ROWS.format(rows=rows)})")
        return self._expected[rows]

    def plain(self, format_name: str, rows: int) -> bytes:
        key = format_name, rows
        if key not in self._plain:
            self._plain[key] = self.exported(format_name, rows, "identity")
            assert counted(format_name, self._plain[key]) in (rows, None)
        return self._plain[key]

    def exported(self, format_name: str, rows: int, encoding: str) -> bytes:
        """The body of an answer as it travelled."""
        blocks = encoding == "blocks"
        query = f"{MATRIX_ROWS.format(rows=rows)} format {format_name}"
        with self._client.stream(
            "POST",
            "/",
            params={"compress": 1}
            if blocks
            else {"enable_http_compression": 1, "http_zlib_compression_level": 1},
            content=query,
            headers={"Accept-Encoding": "identity" if blocks else encoding},
        ) as response:
            body = b"".join(response.iter_raw())
        assert response.status_code == 200, body
        said = None if encoding in ("identity", "blocks") else encoding
        assert response.headers.get("Content-Encoding") == said
        return body

    def check_insert(self, format_name: str, plain: bytes, rows: int, encoding: str, frames: int) -> None:
        """Insert `plain` and compare; one frame goes with its length, many go chunked."""
        self.value(
            "create or replace table matrix (a UInt64, s String) engine = MergeTree order by tuple() "
            "settings fsync_after_insert = 0, fsync_part_directory = 0"
        )
        blocks = encoding == "blocks"
        body = encoded(plain, encoding, frames)
        response = self._client.post(
            "/",
            params={"query": f"insert into matrix format {format_name}", "decompress": int(blocks)},
            content=body if frames == 1 else iter(pieces_of(body, min(23, len(body)))),
            headers={} if blocks or encoding == "identity" else {"Content-Encoding": encoding},
        )
        assert response.status_code == 200, response.text
        assert json.loads(response.headers["X-ClickHouse-Summary"])["written_rows"] == str(rows)
        assert self.checksum("matrix") == self.expected(rows)


@pytest.fixture(scope="module")
def matrix(front: Front) -> Iterator[Matrix]:
    matrix = Matrix(front)
    yield matrix
    matrix.close()


@pytest.mark.parametrize("frames", [1, MANY])
@pytest.mark.parametrize("encoding", REQUEST_ENCODINGS)
@pytest.mark.parametrize("format_name", MATRIX_FORMATS)
def test_every_row_comes_in_by_any_encoding(
    matrix: Matrix, format_name: str, encoding: str, frames: int
) -> None:
    for rows in MATRIX_SIZES:
        matrix.check_insert(format_name, matrix.plain(format_name, rows), rows, encoding, frames)


@pytest.mark.parametrize("encoding", RESPONSE_ENCODINGS)
@pytest.mark.parametrize("format_name", MATRIX_FORMATS)
def test_every_row_goes_out_by_any_encoding(matrix: Matrix, format_name: str, encoding: str) -> None:
    for rows in MATRIX_SIZES:
        body = matrix.exported(format_name, rows, encoding)
        assert RESPONSE_ENCODINGS[encoding](body) == matrix.plain(format_name, rows), rows


@pytest.mark.parametrize(
    ("format_name", "out", "into"),
    [
        ("Native", "blocks", "blocks"),
        ("RowBinary", "lz4", "snappy"),
        ("JSONEachRow", "zstd", "zstd"),
        ("CSV", "gzip", "lz4"),
        ("Parquet", "identity", "identity"),
        ("Arrow", "deflate", "gzip"),
    ],
)
def test_five_million_rows_go_out_and_come_in(matrix: Matrix, format_name: str, out: str, into: str) -> None:
    plain = RESPONSE_ENCODINGS[out](matrix.exported(format_name, FIVE_MILLION, out))
    matrix.check_insert(format_name, plain, FIVE_MILLION, into, MANY)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("format_name", MATRIX_FORMATS)
@pytest.mark.timeout(1800)
def test_five_million_rows_by_every_encoding(matrix: Matrix, format_name: str) -> None:
    plain = matrix.exported(format_name, FIVE_MILLION, "identity")
    assert counted(format_name, plain) in (FIVE_MILLION, None)
    for encoding, frames in itertools.product(REQUEST_ENCODINGS, (1, MANY)):
        matrix.check_insert(format_name, plain, FIVE_MILLION, encoding, frames)
    for encoding, decode in RESPONSE_ENCODINGS.items():
        body = matrix.exported(format_name, FIVE_MILLION, encoding)
        assert decode(body) == plain, encoding
