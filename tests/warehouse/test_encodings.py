"""Encodings: many frames, any cut, bounded steps, damage noticed."""

from __future__ import annotations

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

WRITABLE = [name for name in READABLE if name != "x-gzip"]
FRAMED = [name for name in WRITABLE if name != "br"]  # brotli has no frames to follow one another


def encode(encoding: str, *frames: bytes) -> bytes:
    whole = b""
    for frame in frames:
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


@pytest.mark.parametrize("encoding", WRITABLE)
def test_a_small_body_that_grows_large_comes_in_bounded_steps(encoding: str) -> None:
    decoder = Decoder(encoding)
    sizes = [len(piece) for piece in decoder.feed(encode(encoding, bytes(20 << 20)))]
    decoder.finish()
    assert sum(sizes) == 20 << 20
    # brotli's limit is soft: it may end a block first.
    assert max(sizes) <= MAX_STEP_BYTES * (2 if encoding == "br" else 1)


@pytest.mark.parametrize("encoding", WRITABLE)
def test_a_body_cut_short_is_an_error(encoding: str) -> None:
    data = encode(encoding, b"row\n" * 1000)
    with pytest.raises(EncodingError):
        decode(encoding, data[:-3], 100)


@pytest.mark.parametrize("encoding", FRAMED)
def test_a_second_frame_cut_short_is_an_error(encoding: str) -> None:
    data = encode(encoding, b"row\n" * 1000, b"more\n" * 1000)
    with pytest.raises(EncodingError):
        decode(encoding, data[:-5], 100)


@pytest.mark.parametrize("encoding", WRITABLE)
def test_bytes_of_another_kind_are_an_error(encoding: str) -> None:
    with pytest.raises(EncodingError):
        decode(encoding, b"these are not the bytes you are looking for" * 10, 1000)


def test_the_client_chooses_what_it_can_read() -> None:
    assert accepted_encoding("gzip, deflate, br") == "gzip"
    assert accepted_encoding("lz4;q=0, zstd;q=0.5") == "zstd"
    assert accepted_encoding("identity, snappy") is None
