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
import lz4.frame
from backports import zstd

# One step never yields more than this, however well the input was compressed.
MAX_STEP_BYTES = 1 << 20


class EncodingError(ValueError):
    """The body is not what its Content-Encoding says, or it is cut short."""


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


def _deflate_frame() -> _Frame:
    return _ZlibFrame(zlib.MAX_WBITS)


def _gzip_frame() -> _Frame:
    return _ZlibFrame(zlib.MAX_WBITS | 16)


_FRAMES: dict[str, Callable[[], _Frame]] = {
    "gzip": _gzip_frame,
    "x-gzip": _gzip_frame,
    "deflate": _deflate_frame,
    "br": _BrotliFrame,
    "zstd": zstd.ZstdDecompressor,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "xz": lzma.LZMADecompressor,
    "bz2": bz2.BZ2Decompressor,
}
_FRAME_ERRORS = (
    zlib.error, brotli.error, zstd.ZstdError, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError
)  # fmt: skip

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
        while True:
            if self._frame is None:
                if not data:
                    return
                self._frame = self._new_frame()
            frame = self._frame
            try:
                plain = frame.decompress(data, MAX_STEP_BYTES)
            except _FRAME_ERRORS as error:
                raise EncodingError(f"the body is not valid {self._encoding}: {error}") from error
            data = b""
            if plain:
                yield plain
            if frame.eof:
                # Another frame may follow; zlib pads nothing, and what is no frame fails in the next round.
                data = frame.unused_data or b""
                self._frame = None
            elif frame.needs_input:
                return

    def finish(self) -> None:
        """Say that the body has ended."""
        if self._frame is not None:
            raise EncodingError(f"the body ends inside a {self._encoding} frame; it was cut short")


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


# In the order in which the server chooses when a client accepts several: cheapest first.
_ENCODERS: dict[str, Callable[[int], Encoder]] = {
    "lz4": _Lz4Encoder,
    "zstd": lambda level: _ObjectEncoder(zstd.ZstdCompressor(level=level)),
    "gzip": lambda level: _ObjectEncoder(zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)),
    "deflate": lambda level: _ObjectEncoder(zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS)),
    "br": lambda level: _ObjectEncoder(brotli.Compressor(quality=level), "process", "finish"),
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
