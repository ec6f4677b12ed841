"""ClickHouse's compressed blocks: round trips, any cut, damage and lies refused, the engine's own files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lz4.block
import pytest
from backports import zstd
from clickhouse_cityhash.cityhash import CityHash128
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.platform.warehouse.blocks import (
    BLOCK_BYTES,
    MAX_DECLARED_BYTES,
    BlockDecoder,
    new_block_encoder,
)
from apex_pipelines.platform.warehouse.encodings import MAX_STEP_BYTES, Decoder, EncodingError, new_encoder

METHODS = ["LZ4", "LZ4HC", "ZSTD", "NONE"]
METHOD_BYTES = {"NONE": 0x02, "LZ4": 0x82, "LZ4HC": 0x82, "ZSTD": 0x90}
ROWS = b"".join(b"%d\tuser %d\t%f\n" % (i, i * 7919 % 10007, i * 1.37) for i in range(150_000))


def encode(method: str, *pieces: bytes) -> bytes:
    encoder = new_block_encoder(method)
    return b"".join([encoder.feed(piece) for piece in pieces]) + encoder.finish()


def pieces_of(data: bytes, step: int) -> Iterator[bytes]:
    return (data[start : start + step] for start in range(0, len(data), step))


def decode(data: bytes, step: int = 1 << 16) -> bytes:
    decoder = BlockDecoder()
    plain = b"".join(step for piece in pieces_of(data, step) for step in decoder.feed(piece))
    decoder.finish()
    return plain


def block(method: int, payload: bytes, plain_size: int, size: int | None = None) -> bytes:
    """A block with a true checksum over whatever its header says."""
    covered = struct.pack("<BII", method, 9 + len(payload) if size is None else size, plain_size) + payload
    low, high = divmod(CityHash128(covered), 1 << 64)
    return struct.pack("<QQ", low, high) + covered


def blocks_in(data: bytes) -> list[tuple[int, int]]:
    """Method byte and plain size of each block."""
    found, start = [], 0
    while start < len(data):
        method, size, plain_size = struct.unpack_from("<BII", data, start + 16)
        found.append((method, plain_size))
        start += 16 + size
    return found


@pytest.mark.parametrize("method", METHODS)
@given(blocks=st.lists(st.binary(min_size=1, max_size=300), max_size=6), step=st.integers(1, 400))
def test_every_block_is_read_however_the_body_is_cut(method: str, blocks: list[bytes], step: int) -> None:
    assert decode(b"".join(encode(method, each) for each in blocks), step) == b"".join(blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1 << 12, (1 << 20) - 1, 1 << 20, 5 << 20])
def test_an_answer_is_cut_into_blocks_of_a_mebibyte_however_it_is_fed(method: str, step: int) -> None:
    encoded = encode(method, *pieces_of(ROWS, step))
    full, rest = divmod(len(ROWS), BLOCK_BYTES)
    assert full > 2
    assert blocks_in(encoded) == [(METHOD_BYTES[method], size) for size in [BLOCK_BYTES] * full + [rest]]
    assert decode(encoded) == ROWS


def test_an_empty_answer_has_no_blocks() -> None:
    assert encode("LZ4") == encode("LZ4", b"", b"") == b""
    assert decode(b"") == b""


def test_the_checksum_is_laid_out_as_the_engine_does() -> None:
    # A TinyLog column's file with the numbers 0 to 4, written by chDB 26.9.
    written = bytes.fromhex(
        "859342eded4e21d1c3b2dece28e0cc3d"
        "902900000028000000"
        "28b52ffd2028bd00008000000100020003000400000000000000045402000301"
    )
    assert decode(written) == struct.pack("<5Q", *range(5))


def test_compression_names_come_in_any_case_and_others_are_refused() -> None:
    assert new_block_encoder("zstd", 22).feed(b"") == b""
    with pytest.raises(ValueError, match="known: LZ4, LZ4HC, ZSTD, NONE"):
        new_block_encoder("deflate")
    with pytest.raises(ValueError, match="level 23 of compression method ZSTD"):
        new_block_encoder("ZSTD", 23)


@pytest.mark.parametrize("method", METHODS)
@given(plain=st.binary(min_size=1, max_size=200), data=st.data())
def test_a_flipped_bit_is_always_refused(method: str, plain: bytes, data: st.DataObject) -> None:
    encoded = bytearray(encode(method, plain) + encode(method, plain))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EncodingError):
        decode(bytes(encoded), 64)


def test_damage_is_told_in_the_words_of_the_engine() -> None:
    encoded = bytearray(encode("LZ4", b"row\n" * 1000))
    encoded[-1] ^= 1
    with pytest.raises(
        EncodingError, match=r"^Checksum doesn't match: corrupted data\. Reference: [0-9a-f]{32}"
    ):
        decode(bytes(encoded))


@pytest.mark.parametrize("method", METHODS)
@given(plain=st.binary(min_size=1, max_size=200), data=st.data())
def test_a_body_cut_short_is_always_refused(method: str, plain: bytes, data: st.DataObject) -> None:
    one = encode(method, plain)
    encoded = one + one
    kept = data.draw(st.integers(1, len(encoded) - 1).filter(lambda size: size != len(one)))
    with pytest.raises(EncodingError, match="cut short"):
        decode(encoded[:kept], 64)


@pytest.mark.parametrize("method", [0x00, 0x83, 0x91, 0x92, 0x96, 0xFF])
def test_other_codecs_are_refused_by_their_byte(method: int) -> None:
    with pytest.raises(EncodingError, match=f"0x{method:02x}"):
        decode(block(method, b"payload", 7))


def test_methods_may_not_change_within_a_body() -> None:
    with pytest.raises(EncodingError, match="method byte 0x90, previous method byte 0x82"):
        decode(encode("LZ4", b"one") + encode("ZSTD", b"two"))


@pytest.mark.parametrize("size", [0, 8, MAX_DECLARED_BYTES + 1, 0x80000009, 0xFFFFFFFF])
def test_a_compressed_size_that_cannot_be_is_refused_by_the_header_alone(size: int) -> None:
    with pytest.raises(EncodingError, match=rf"\b{size}\b"):
        list(BlockDecoder().feed(block(0x82, b"", 100, size)))


@pytest.mark.parametrize("method", [0x02, 0x82, 0x90])
@pytest.mark.parametrize("plain_size", [0, MAX_DECLARED_BYTES + 1, 0xFFFFFFFF])
def test_a_plain_size_that_cannot_be_is_refused_by_the_header_alone(method: int, plain_size: int) -> None:
    with pytest.raises(EncodingError, match=rf"\b{plain_size}\b"):
        list(BlockDecoder().feed(block(method, b"", plain_size, 1000)))


@pytest.mark.parametrize("method", [0x02, 0x82, 0x90])
@pytest.mark.parametrize("lie", [-299, -1, 1, 300, 1 << 20, MAX_DECLARED_BYTES - 300])
def test_a_lie_about_the_plain_size_is_refused(method: int, lie: int) -> None:
    plain = bytes(300)
    payload = {0x02: plain, 0x82: lz4.block.compress(plain, store_size=False), 0x90: zstd.compress(plain)}
    assert decode(block(method, payload[method], 300)) == plain
    with pytest.raises(EncodingError, match=r"decompress|zstd"):
        decode(block(method, payload[method], 300 + lie))


@pytest.mark.parametrize("method", [0x82, 0x90])
@given(payload=st.binary(max_size=100), plain_size=st.integers(1, MAX_DECLARED_BYTES))
def test_a_payload_of_any_bytes_is_decoded_to_its_size_or_refused(
    method: int, payload: bytes, plain_size: int
) -> None:
    with suppress(EncodingError):
        assert len(decode(block(method, payload, plain_size))) == plain_size


@pytest.mark.parametrize("method", ["LZ4", "ZSTD", "NONE"])
def test_a_large_block_comes_in_bounded_steps(method: str) -> None:
    plain = bytes(20 << 20)
    payload = {
        "LZ4": lambda: lz4.block.compress(plain, store_size=False),
        "ZSTD": lambda: zstd.compress(plain),
        "NONE": lambda: plain,
    }[method]()
    sizes = [len(piece) for piece in BlockDecoder().feed(block(METHOD_BYTES[method], payload, len(plain)))]
    assert sum(sizes) == len(plain)
    assert max(sizes) <= MAX_STEP_BYTES


def test_nothing_is_allocated_for_a_size_that_is_only_declared() -> None:
    tracemalloc.start()
    try:
        decoder = BlockDecoder()
        assert list(decoder.feed(block(0x82, b"x" * 100, MAX_DECLARED_BYTES, MAX_DECLARED_BYTES))) == []
        with pytest.raises(EncodingError):
            decode(block(0x82, b"\x00" * 100, MAX_DECLARED_BYTES))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(30)
def test_work_grows_with_the_body_and_not_with_its_cutting() -> None:
    # Minutes if any piece copied what came before it, or any block or frame what comes after.
    whole = encode("NONE", bytes(2 << 20))
    assert len(decode(whole, 1)) == 2 << 20
    row = bytes(range(100))
    assert len(decode(encode("NONE", row) * 100_000, 1 << 30)) == 10_000_000
    assert len(decode(block(0x90, zstd.compress(row) * 100_000, 10_000_000))) == 10_000_000


@pytest.mark.parametrize("outer", ["gzip", "zstd", "lz4"])
def test_blocks_may_stand_inside_a_content_encoding(outer: str) -> None:
    encoder = new_encoder(outer, 3)
    blocks = encode("LZ4", ROWS)
    sent = encoder.feed(blocks) + encoder.finish()
    around, inside = Decoder(outer), BlockDecoder()
    plain = [
        step
        for piece in pieces_of(sent, 1000)
        for middle in around.feed(piece)
        for step in inside.feed(middle)
    ]
    around.finish()
    inside.finish()
    assert b"".join(plain) == ROWS


# What chDB does is asked of a process of its own: it takes one data folder a process.
WRITE_TABLES = """
import json, sys
from chdb import connect
connection = connect(sys.argv[1])
wide = "MergeTree order by tuple() settings min_bytes_for_wide_part=0, min_rows_for_wide_part=0"
for codec in ("LZ4", "LZ4HC", "ZSTD", "NONE", "Delta, LZ4"):
    for engine in ("TinyLog", wide):
        name = f"{engine.split()[0]} {codec}"
        connection.query(f"create table `{name}` (n UInt64 CODEC({codec})) engine={engine}")
        connection.query(f"insert into `{name}` select intHash64(number) % 1000000 from numbers(300000)")
tables = connection.query(
    "select name, data_paths[1] from system.tables where database = currentDatabase()", "JSONCompact"
)
sums = connection.query("select sum(intHash64(number) % 1000000) from numbers(300000)")
print(json.dumps({"tables": dict(json.loads(str(tables))["data"]), "sum": int(str(sums))}))
connection.close()
"""
READ_TABLES = """
import sys
from chdb import connect
connection = connect(sys.argv[1])
for name in sys.argv[2:]:
    print(str(connection.query(f"select count(), sum(n) from `{name}`")).strip())
connection.close()
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_and_we_read_the_blocks_of_one_another(tmp_path: Path) -> None:
    home = str(tmp_path / "engine")
    written = json.loads(run(WRITE_TABLES, home))
    tables = {name: Path(home, folder) for name, folder in written["tables"].items()}
    plain = b""
    for name, folder in tables.items():
        [file] = folder.rglob("n.bin")
        data = file.read_bytes()
        if "Delta" in name:
            with pytest.raises(EncodingError, match="0x91"):
                decode(data)
            continue
        assert {found for found, _ in blocks_in(data)} == {METHOD_BYTES[name.split()[1]]}
        plain = decode(data)
        assert len(plain) == 300_000 * 8
        assert sum(struct.unpack("<300000Q", plain)) == written["sum"]

    ours = [f"TinyLog {method}" for method in METHODS]
    for name, method in zip(ours, METHODS, strict=True):
        replaced = encode(method, plain)
        sizes = json.loads((tables[name] / "sizes.json").read_text())
        [column] = sizes["clickhouse"]
        sizes["clickhouse"][column]["size"] = str(len(replaced))
        (tables[name] / "sizes.json").write_text(json.dumps(sizes))
        (tables[name] / "n.bin").write_bytes(replaced)
    assert run(READ_TABLES, home, *ours).split() == [f"300000,{written['sum']}"] * len(ours)
