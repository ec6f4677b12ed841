"""Content encodings of requests and responses, streamed, with bounded output a step.

Belongs here: turning encoded bytes into plain ones and back. Does not belong here: HTTP headers, SQL.

Clients compress each block of an insert as a frame of its own, so a body is a sequence of frames; reading
only the first would lose the rest in silence. A body that ends inside a frame is an error.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import brotli
import cramjam
import lz4.frame
from backports import zstd

# One step never yields more than this, however well the input was compressed.
MAX_STEP_BYTES = 1 << 20
# Input is taken in pieces of this size: each frame's end copies what follows it in the piece, which must not
# add up when a large input holds many small frames.
_PIECE_BYTES = 1 << 16


class EncodingError(ValueError):
    """The body is not what its Content-Encoding says, or it is cut short.

    Attributes
    ----------
    name : str
        ClickHouse's name for what went wrong.
    """

    def __init__(self, text: str, name: str = "CANNOT_DECOMPRESS") -> None:
        super().__init__(text)
        self.name = name


class _Frame(Protocol):
    """A decoder of one frame, as the standard library's `bz2` and `lzma` have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibFrame:
    """zlib's decoder with the interface of the others."""

    def __init__(self, window_bits: int) -> None:
        self._decoder = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _BrotliFrame:
    """brotli's decoder with the interface of the others; the format has no frames to follow."""

    unused_data = b""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self._drained = True

    @property
    def eof(self) -> bool:
        return bool(self._decoder.is_finished())

    @property
    def needs_input(self) -> bool:
        return self._drained and bool(self._decoder.can_accept_more_data())

    def decompress(self, data: bytes, max_length: int) -> bytes:
        plain = bytes(self._decoder.process(data, output_buffer_limit=max_length))
        # It may hold finished output back while it already accepts input; only an empty answer says that it
        # has given all.
        self._drained = not plain
        return plain


class _SnappyFrame:
    """A block of Hadoop's framing of snappy, which is what ClickHouse reads by that name.

    The block's plain length, then parts until that much has come: a part's compressed length and raw snappy.
    Lengths are big-endian. ClickHouse has a buffer of 1 MiB for a block and another for a part, and refuses
    what does not fit (`src/IO/HadoopSnappyReadBuffer.cpp`); so do we, and hold no more either.
    """

    needs_input = True  # what came is decoded at once

    def __init__(self) -> None:
        self._input = bytearray()
        self._owed: int | None = None
        self._part: int | None = None

    @property
    def eof(self) -> bool:
        return self._owed == 0

    @property
    def unused_data(self) -> bytes:
        return bytes(self._input)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._input += data
        plain = []
        if self._owed is None:
            self._owed = self._take_length("block", max_length)
        while self._owed:
            if self._part is None:
                self._part = self._take_length("part", max_length)
            if self._part is None or len(self._input) < self._part:
                break
            part = self._take(self._part)
            self._part = None
            if cramjam.snappy.decompress_raw_len(part) > self._owed:
                raise ValueError("a part is longer than its block")
            plain.append(bytes(cramjam.snappy.decompress_raw(part)))
            self._owed -= len(plain[-1])
        return b"".join(plain)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._input[:size])
        del self._input[:size]
        return taken

    def _take_length(self, what: str, limit: int) -> int | None:
        if len(self._input) < 4:
            return None
        length = int.from_bytes(self._take(4), "big")
        if length > limit:
            raise ValueError(f"a {what} of {length} bytes is longer than {limit}")
        return length


def _deflate_frame() -> _Frame:
    return _ZlibFrame(zlib.MAX_WBITS)


def _gzip_frame() -> _Frame:
    return _ZlibFrame(zlib.MAX_WBITS | 16)


_FRAMES: dict[str, Callable[[], _Frame]] = {
    "gzip": _gzip_frame,
    "deflate": _deflate_frame,
    "br": _BrotliFrame,
    "zstd": zstd.ZstdDecompressor,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "xz": lzma.LZMADecompressor,
    "bz2": bz2.BZ2Decompressor,
    "snappy": _SnappyFrame,
}
_FRAME_ERRORS = (
    zlib.error, brotli.error, zstd.ZstdError, lzma.LZMAError, cramjam.DecompressionError, OSError, EOFError,
    RuntimeError, ValueError,
)  # fmt: skip

# Names that ClickHouse takes for the same.
ALIASES = {"gz": "gzip", "x-gzip": "gzip", "brotli": "br", "zst": "zstd", "lzma": "xz"}
_ERROR_NAMES = {
    "gzip": "ZLIB_INFLATE_FAILED",
    "deflate": "ZLIB_INFLATE_FAILED",
    "br": "BROTLI_READ_FAILED",
    "zstd": "ZSTD_DECODER_FAILED",
    "lz4": "LZ4_DECODER_FAILED",
    "xz": "LZMA_STREAM_DECODER_FAILED",
    "bz2": "BZIP2_STREAM_DECODER_FAILED",
    "snappy": "SNAPPY_UNCOMPRESS_FAILED",
}

READABLE = tuple(_FRAMES)


class Decoder:
    """Decodes a body of any number of frames.

    Parameters
    ----------
    encoding : str
        One of `READABLE`.

    Raises
    ------
    EncodingError
        From `feed` and `finish`, when the bytes are not of this encoding or end inside a frame.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._new_frame = _FRAMES[encoding]
        self._frame: _Frame | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Plain bytes that `data` yields, at most `MAX_STEP_BYTES` at a time."""
        for start in range(0, len(data), _PIECE_BYTES):
            yield from self._feed_piece(data[start : start + _PIECE_BYTES])

    def finish(self) -> None:
        """Say that the body has ended."""
        if self._frame is not None:
            raise self._error(f"the body ends inside a {self._encoding} frame; it was cut short")

    def _error(self, text: str) -> EncodingError:
        return EncodingError(text, _ERROR_NAMES[self._encoding])

    def _feed_piece(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._frame is None:
                if not data:
                    return
                self._frame = self._new_frame()
            frame = self._frame
            try:
                plain = frame.decompress(data, MAX_STEP_BYTES)
            except _FRAME_ERRORS as error:
                raise self._error(f"the body is not valid {self._encoding}: {error}") from error
            data = b""
            if plain:
                yield plain
            if frame.eof:
                # Another frame may follow; zlib pads nothing, and what is no frame fails in the next round.
                data = frame.unused_data or b""
                self._frame = None
            elif frame.needs_input:
                return


class Encoder(Protocol):
    """Encodes a response as one frame."""

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _ObjectEncoder:
    """Wraps the `compress`/`flush` pair that most libraries offer."""

    def __init__(self, compressor: Any, method: str = "compress", finish: str = "flush") -> None:
        self._feed = getattr(compressor, method)
        self._finish = getattr(compressor, finish)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._feed(data))

    def finish(self) -> bytes:
        return bytes(self._finish())


class _Lz4Encoder:
    def __init__(self, level: int) -> None:
        self._compressor = lz4.frame.LZ4FrameCompressor(compression_level=level if level > 3 else 0)
        self._head = self._compressor.begin()

    def feed(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return bytes(head + self._compressor.compress(data))

    def finish(self) -> bytes:
        head, self._head = self._head, b""
        return bytes(head + self._compressor.flush())


# In the order in which a ClickHouse server chooses when a client accepts several.
_ENCODERS: dict[str, Callable[[int], Encoder]] = {
    "zstd": lambda level: _ObjectEncoder(zstd.ZstdCompressor(level=level)),
    "br": lambda level: _ObjectEncoder(brotli.Compressor(quality=level), "process", "finish"),
    "lz4": _Lz4Encoder,
    "gzip": lambda level: _ObjectEncoder(zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)),
    "deflate": lambda level: _ObjectEncoder(zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS)),
    "xz": lambda level: _ObjectEncoder(lzma.LZMACompressor(preset=level)),
    "bz2": lambda level: _ObjectEncoder(bz2.BZ2Compressor(level)),
}


def accepted_encoding(header: str) -> str | None:
    """The encoding to answer with, of those that an Accept-Encoding header allows; None for plain."""
    accepted = set()
    for item in header.lower().split(","):
        name, _, weight = item.partition(";")
        if weight.replace(" ", "") not in ("q=0", "q=0.0"):
            accepted.add(name.strip())
    return next((name for name in _ENCODERS if name in accepted), None)


def new_encoder(encoding: str, level: int) -> Encoder:
    """An encoder for one response; `level` 1 (fast) to 9 (small)."""
    return _ENCODERS[encoding](min(max(level, 1), 9))
