"""Encodings: many frames, any cut, bounded steps, damage noticed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.platform.warehouse.encodings import (
    MAX_STEP_BYTES,
    READABLE,
    Decoder,
    EncodingError,
    accepted_encoding,
    new_encoder,
)

ENCODINGS = list(READABLE)
FRAMED = [name for name in ENCODINGS if name != "br"]  # brotli has no frames to follow one another


def snappy_block(*parts: bytes, length: int | None = None) -> bytes:
    """A block as Hadoop frames them; `length` is what it says of itself, by default the truth."""
    whole = (sum(map(len, parts)) if length is None else length).to_bytes(4, "big")
    for part in parts:
        packed = bytes(cramjam.snappy.compress_raw(part))
        whole += len(packed).to_bytes(4, "big") + packed
    return whole


def encode(encoding: str, *frames: bytes) -> bytes:
    whole = b""
    for frame in frames:
        if encoding == "snappy":  # ClickHouse reads it and does not write it
            starts = range(0, len(frame), 1 << 18)
            whole += b"".join(snappy_block(frame[start : start + (1 << 18)]) for start in starts)
            continue
        encoder = new_encoder(encoding, 3)
        whole += encoder.feed(frame) + encoder.finish()
    return whole


def decode(encoding: str, data: bytes, step: int) -> bytes:
    decoder = Decoder(encoding)
    plain = b"".join(
        piece for start in range(0, len(data), step) for piece in decoder.feed(data[start : start + step])
    )
    decoder.finish()
    return plain


@pytest.mark.parametrize("encoding", FRAMED)
@given(frames=st.lists(st.binary(max_size=300), min_size=1, max_size=6), step=st.integers(1, 400))
def test_every_frame_is_read_however_the_body_is_cut(encoding: str, frames: list[bytes], step: int) -> None:
    assert decode(encoding, encode(encoding, *frames), step) == b"".join(frames)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_small_body_that_grows_large_comes_in_bounded_steps(encoding: str) -> None:
    decoder = Decoder(encoding)
    sizes = [len(piece) for piece in decoder.feed(encode(encoding, bytes(20 << 20)))]
    decoder.finish()
    assert sum(sizes) == 20 << 20
    # brotli's limit is soft: it may end a block first.
    assert max(sizes) <= MAX_STEP_BYTES * (2 if encoding == "br" else 1)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_cut_short_is_an_error(encoding: str) -> None:
    data = encode(encoding, b"row\n" * 1000)
    with pytest.raises(EncodingError):
        decode(encoding, data[:-3], 100)


@pytest.mark.parametrize("encoding", FRAMED)
def test_a_second_frame_cut_short_is_an_error(encoding: str) -> None:
    data = encode(encoding, b"row\n" * 1000, b"more\n" * 1000)
    with pytest.raises(EncodingError):
        decode(encoding, data[:-5], 100)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_of_another_kind_are_an_error(encoding: str) -> None:
    with pytest.raises(EncodingError):
        decode(encoding, b"these are not the bytes you are looking for" * 10, 1000)


def test_the_client_chooses_what_it_can_read() -> None:
    assert accepted_encoding("gzip, deflate, br") == "br"
    assert accepted_encoding("lz4;q=0, zstd;q=0.5") == "zstd"
    assert accepted_encoding("identity, snappy") is None


def test_a_snappy_block_may_have_many_parts_and_be_empty() -> None:
    body = snappy_block() + snappy_block(b"one", b"", b"two") + snappy_block() + snappy_block(b"three")
    assert decode("snappy", body, 1) == decode("snappy", body, 1000) == b"onetwothree"


# Each of these is refused by ClickHouse 26.9 too, and in the first case one byte less is not.
@pytest.mark.parametrize(
    "body",
    [
        snappy_block(bytes((1 << 20) + 1)),
        snappy_block(*[bytes(1 << 18)] * 8),
        snappy_block(b"row", length=0xFFFFFFFF),
        snappy_block(b"row", length=2),
        b"\0\0\0\4" + b"\0\0\0\0" + snappy_block(b"row\n")[4:],
        b"\0\0\0\4" + (1 << 21).to_bytes(4, "big"),
        bytes(cramjam.snappy.compress_raw(b"raw, without frames" * 10)),
        bytes(cramjam.snappy.compress(b"the framing of Snappy itself" * 10)),
    ],
    ids=["long", "long by its parts", "negative", "lie", "empty part", "long part", "raw", "framed"],
)
def test_snappy_that_clickhouse_refuses_is_refused(body: bytes) -> None:
    with pytest.raises(EncodingError, match="not valid snappy"):
        decode("snappy", body, 1000)


def test_a_snappy_block_may_fill_a_mebibyte() -> None:
    assert decode("snappy", snappy_block(bytes(1 << 20)), 1000) == bytes(1 << 20)


@given(body=st.binary(max_size=100))
def test_bytes_of_any_kind_end_as_snappy_or_are_refused(body: bytes) -> None:
    with suppress(EncodingError):
        assert len(decode("snappy", b"\0\0\0\x20\0\0\0" + body, 7)) >= 32


@pytest.mark.timeout(30)
@pytest.mark.parametrize("encoding", ["gzip", "zstd", "snappy"])
def test_many_small_frames_in_one_piece_cost_no_more_each(encoding: str) -> None:
    # Minutes if each frame copied all that comes after it.
    assert len(decode(encoding, encode(encoding, bytes(range(100))) * 100_000, 1 << 30)) == 10_000_000


WRITE_SNAPPY = """
import sys
from chdb import connect
connection = connect(sys.argv[1])
connection.query(f"insert into function file('{sys.argv[2]}', TSV) select number * 7919 from numbers(300000)")
connection.close()
"""


def test_snappy_as_the_engine_writes_it_is_read(tmp_path: Path) -> None:
    written = tmp_path / "numbers.tsv.snappy"
    arguments = [sys.executable, "-c", WRITE_SNAPPY, str(tmp_path / "engine"), str(written)]
    subprocess.run(arguments, capture_output=True, text=True, check=True)
    plain = b"".join(b"%d\n" % (number * 7919) for number in range(300_000))
    assert decode("snappy", written.read_bytes(), 1 << 16) == plain
