"""ClickHouse's own compressed blocks: the body under `decompress=1`, the answer under `compress=1`.

Belongs here: turning a sequence of blocks into plain bytes and back. Does not belong here: the URL's
parameters; Content-Encoding (`encodings`), which may be around the blocks and is then taken off first.

A block is the checksum of what follows it, then a method byte, the size of block without checksum, the plain
size, and the payload. Sizes are little-endian. The checksum is CityHash128 as of its version 1.0.2: two
little-endian words, the low one first. What is refused, and in which words, is ClickHouse's
`src/Compression/CompressedReadBufferBase.cpp`. Table files are such blocks too; the tests read those.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import lz4.block
from backports import zstd
from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]

from apex_pipelines.platform.warehouse.encodings import MAX_STEP_BYTES, Decoder, Encoder, EncodingError

# Plain bytes in a block that we write, as in one that a server writes.
BLOCK_BYTES = 1 << 20
# Largest size that a block may declare. A server takes 1 GiB, but a block is decoded whole, and clients write
# blocks of 1 MiB.
MAX_DECLARED_BYTES = 1 << 28

_CHECKSUM_BYTES = 16
_HEADER = struct.Struct("<BII")
# What one byte of LZ4 can at most stand for; a block that declares more is a lie, whatever is in it.
_LZ4_MAX_RATIO = 255


class Method(IntEnum):
    """How a block's payload is compressed; LZ4HC writes LZ4."""

    NONE = 0x02
    LZ4 = 0x82
    ZSTD = 0x90


@dataclass(frozen=True)
class _Head:
    """What comes before a block's payload; `size` counts the header and the payload."""

    checksum: bytes
    method: Method
    size: int
    plain_size: int

    @classmethod
    def parse(cls, data: bytes) -> _Head:
        code, size, plain_size = _HEADER.unpack_from(data, _CHECKSUM_BYTES)
        try:
            method = Method(code)
        except ValueError:
            known = ", ".join(f"{method.name} 0x{method:02x}" for method in Method)
            raise EncodingError(
                f"Unknown codec family code: 0x{code:02x}; a body's blocks may be {known}"
            ) from None
        if size > MAX_DECLARED_BYTES:
            raise EncodingError(
                f"Too large size_compressed_without_checksum: {size}. Most likely corrupted data."
            )
        if size < _HEADER.size:
            raise EncodingError(
                f"Can't decompress data: the compressed data size ({size}, this should include header size) "
                f"is less than the header size ({_HEADER.size})"
            )
        if plain_size == 0:
            raise EncodingError("Can't decompress data: header is corrupt with decompressed block size 0")
        if plain_size > MAX_DECLARED_BYTES:
            raise EncodingError(f"Too large size_decompressed: {plain_size}. Most likely corrupted data.")
        return cls(data[:_CHECKSUM_BYTES], method, size, plain_size)


class BlockDecoder:
    """Decodes a body of any number of blocks, all of one method.

    Has the interface of `encodings.Decoder`, so it can follow one. It holds one block, since a checksum
    comes before what it covers: first as it came, then beside it the plain bytes.

    Raises
    ------
    EncodingError
        From `feed` and `finish`: a damaged block, a method that is not in `Method` or not that of the blocks
        before, sizes that can't be or are not true, an end inside a block.
    """

    def __init__(self) -> None:
        self._collected = io.BytesIO()
        self._wanted = _CHECKSUM_BYTES + _HEADER.size
        self._head: _Head | None = None
        self._method: Method | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Plain bytes that `data` yields, at most `MAX_STEP_BYTES` at a time."""
        left = memoryview(data)
        while True:
            missing = self._wanted - self._collected.tell()
            self._collected.write(left[:missing])
            if len(left) < missing:
                return
            left = left[missing:]
            collected, self._collected = self._collected.getvalue(), io.BytesIO()
            if self._head is None:
                self._head = self._next_head(collected)
                self._collected.write(collected[_CHECKSUM_BYTES:])
                self._wanted = self._head.size
            else:
                head, self._head = self._head, None
                self._wanted = _CHECKSUM_BYTES + _HEADER.size
                yield from _plain(head, collected)

    def finish(self) -> None:
        """Say that the body has ended."""
        if self._head is not None or self._collected.tell():
            raise EncodingError("the body ends inside a compressed block; it was cut short")

    def _next_head(self, data: bytes) -> _Head:
        head = _Head.parse(data)
        if self._method not in (None, head.method):
            raise EncodingError(
                f"Data compressed with different methods, given method byte 0x{head.method:02x}, "
                f"previous method byte 0x{self._method:02x}"
            )
        self._method = head.method
        return head


def _plain(head: _Head, covered: bytes) -> Iterator[bytes]:
    """A block's plain bytes in steps; `covered` is what its checksum is over."""
    actual = _checksum(covered)
    if actual != head.checksum:
        raise EncodingError(
            f"Checksum doesn't match: corrupted data. Reference: {_shown(head.checksum)}. "
            f"Actual: {_shown(actual)}. Size of compressed block: {len(covered)}"
        )
    size = 0
    for piece in _PAYLOADS[head.method](covered, head.plain_size):
        size += len(piece)
        if size > head.plain_size:
            break
        yield piece
    if size != head.plain_size:
        raise EncodingError(
            f"Can't decompress data: {size} bytes came out of a {head.method.name} block that declares "
            f"{head.plain_size}"
        )


def _of_none(covered: bytes, plain_size: int) -> Iterator[bytes]:
    return _steps(covered[_HEADER.size :])


def _of_lz4(covered: bytes, plain_size: int) -> Iterator[bytes]:
    payload = memoryview(covered)[_HEADER.size :]
    if plain_size > _LZ4_MAX_RATIO * len(payload):
        raise EncodingError(
            f"Can't decompress data: {len(payload)} bytes of LZ4 can't hold the {plain_size} that the block "
            f"declares"
        )
    try:
        plain = lz4.block.decompress(payload, uncompressed_size=plain_size)
    except lz4.block.LZ4BlockError as error:
        raise EncodingError(f"Cannot decompress LZ4-encoded data: {error}") from error
    return _steps(plain)


def _of_zstd(covered: bytes, plain_size: int) -> Iterator[bytes]:
    frames = Decoder("zstd")
    yield from frames.feed(covered[_HEADER.size :])
    frames.finish()


def _steps(plain: bytes) -> Iterator[bytes]:
    for start in range(0, len(plain), MAX_STEP_BYTES):
        yield plain[start : start + MAX_STEP_BYTES]


_PAYLOADS: dict[Method, Callable[[bytes, int], Iterator[bytes]]] = {
    Method.NONE: _of_none,
    Method.LZ4: _of_lz4,
    Method.ZSTD: _of_zstd,
}


def _checksum(covered: bytes) -> bytes:
    # Only ever given bytes: of any other buffer the library never gives up its hold, and the memory is lost.
    # Its integer has the two words the other way round than a 128-bit number would.
    low, high = divmod(CityHash128(covered), 1 << 64)
    return struct.pack("<QQ", low, high)


def _shown(checksum: bytes) -> str:
    return checksum[::-1].hex()


class _BlockEncoder:
    """Cuts what it is fed into blocks of `BLOCK_BYTES`."""

    def __init__(self, method: Method, compress: Callable[[bytes | memoryview], bytes]) -> None:
        self._method = method
        self._compress = compress
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        left = memoryview(data)
        if self._rest:
            missing = BLOCK_BYTES - len(self._rest)
            self._rest += left[:missing]
            left = left[missing:]
            if len(self._rest) == BLOCK_BYTES:
                parts += self._take_rest()
        while len(left) >= BLOCK_BYTES:
            parts += self._block(left[:BLOCK_BYTES])
            left = left[BLOCK_BYTES:]
        self._rest += left
        return b"".join(parts)

    def finish(self) -> bytes:
        return b"".join(self._take_rest()) if self._rest else b""

    def _take_rest(self) -> tuple[bytes, bytes]:
        rest, self._rest = self._rest, bytearray()
        return self._block(memoryview(rest))

    def _block(self, plain: memoryview) -> tuple[bytes, bytes]:
        payload = self._compress(plain)
        covered = _HEADER.pack(self._method, _HEADER.size + len(payload), len(plain)) + payload
        return _checksum(covered), covered


def new_block_encoder(method: str = "LZ4", level: int | None = None) -> Encoder:
    """An encoder for one response; an empty one has no blocks.

    Parameters
    ----------
    method : str
        LZ4, LZ4HC, ZSTD or NONE in any case, as the setting `network_compression_method` has them.
    level : int, optional
        1 to 12 for LZ4HC (9), 1 to 22 for ZSTD (3); the others have none.

    Raises
    ------
    ValueError
        For any other method or level.
    """
    name = method.upper()
    levels = {"LZ4HC": (9, 12), "ZSTD": (3, 22)}
    default, highest = levels.get(name, (0, 0))
    if level is None:
        level = default
    elif name in levels and not 1 <= level <= highest:
        raise ValueError(f"level {level} of compression method {name} is not between 1 and {highest}")
    if name == "NONE":
        return _BlockEncoder(Method.NONE, bytes)
    if name == "LZ4":
        return _BlockEncoder(Method.LZ4, lambda plain: bytes(lz4.block.compress(plain, store_size=False)))
    if name == "LZ4HC":
        return _BlockEncoder(
            Method.LZ4,
            lambda plain: bytes(
                lz4.block.compress(plain, mode="high_compression", compression=level, store_size=False)
            ),
        )
    if name == "ZSTD":
        return _BlockEncoder(Method.ZSTD, lambda plain: zstd.compress(plain, level=level))
    raise ValueError(f"unknown compression method {method}; known: LZ4, LZ4HC, ZSTD, NONE")
