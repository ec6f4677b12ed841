"""Bytes of a spool segment: a file header, then frames, then a footer once it is sealed.

A frame holds the events of one request, so that a request is on disk whole or not at all. Its header says
which rows of the segment it carries: a damaged frame doesn't shift the row numbers of those after it.

Belongs here: encoding and scanning bytes. Does not belong here: files, locks, what a payload means.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

FILE_HEADER = b"APXSPL01"
# 0xFF never occurs in UTF-8, so no text that a customer sends can look like the start of a frame.
_FRAME_MAGIC = b"\xffAPF"
_FOOTER_MAGIC = b"\xffAPE"
# Magic, payload bytes, first row, rows, CRC-32 of all before it and of the payload.
_HEADER = struct.Struct("<4sIII")
_CHECKSUM = struct.Struct("<I")
FRAME_OVERHEAD = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Frame:
    """One intact frame: rows `first_row` to ``first_row + row_count`` of its segment, as `payload`."""

    first_row: int
    row_count: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes `start` to `end` of a segment that are no intact frame, and what seems to be wrong with them."""

    start: int
    end: int
    problem: str


@dataclass(slots=True)
class Scan:
    """What a segment's bytes hold.

    Attributes
    ----------
    sealed_rows : int or None
        Rows according to the footer; None when there is none.
    size : int
        Bytes in use; behind them is nothing but reserved room.
    """

    frames: list[Frame] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    sealed_rows: int | None = None
    size: int = 0

    @property
    def next_row(self) -> int:
        """Row number after the last intact frame."""
        return self.frames[-1].first_row + self.frames[-1].row_count if self.frames else 0


def encode_frame(payload: bytes, first_row: int, row_count: int) -> bytes:
    """A frame carrying `payload`, which holds `row_count` rows from `first_row` on."""
    return _encode(_FRAME_MAGIC, payload, first_row, row_count)


def encode_footer(row_count: int) -> bytes:
    """The end of a sealed segment of `row_count` rows; it makes a tail that was cut off noticeable."""
    return _encode(_FOOTER_MAGIC, b"", row_count, 0)


def _encode(magic: bytes, payload: bytes, first_row: int, row_count: int) -> bytes:
    header = _HEADER.pack(magic, len(payload), first_row, row_count)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def scan(data: bytes, *, is_open: bool = False) -> Scan:
    """Read all intact frames of a segment, jumping over damage to the next frame that proves itself.

    Parameters
    ----------
    is_open : bool
        Whether room may have been reserved at the end, which reads as zeros and is no damage.
    """
    result = Scan()
    # A frame may end in zeros of its own, but none begins with one.
    content = len(data.rstrip(b"\0")) if is_open else len(data)
    position = len(FILE_HEADER)
    if data[:position] != FILE_HEADER:
        if FILE_HEADER.startswith(data[:content]):
            return result  # killed while the header was written: nothing was ever acknowledged from here
        position = 0
    while position < content:
        problem = _problem_at(data, position)
        if problem is None:
            magic, length, first_row, row_count = _HEADER.unpack_from(data, position)
            start = position + FRAME_OVERHEAD
            if magic == _FOOTER_MAGIC:
                result.sealed_rows = first_row
            else:
                result.frames.append(Frame(first_row, row_count, data[start : start + length]))
            position = start + length
            continue
        resumed = min(_next_intact(data, position + 1), content)
        result.damage.append(Damage(position, resumed, problem))
        position = resumed
    result.size = position
    return result


def _problem_at(data: bytes, position: int) -> str | None:
    """Why no intact frame or footer starts at `position`; None when one does."""
    if position + FRAME_OVERHEAD > len(data):
        return "cut off within a frame's header"
    magic, length, _, _ = _HEADER.unpack_from(data, position)
    if magic not in (_FRAME_MAGIC, _FOOTER_MAGIC):
        return "no frame starts here"
    start = position + FRAME_OVERHEAD
    if start + length > len(data):
        return "cut off within a frame"
    (checksum,) = _CHECKSUM.unpack_from(data, position + _HEADER.size)
    if (
        zlib.crc32(data[start : start + length], zlib.crc32(data[position : position + _HEADER.size]))
        != checksum
    ):
        return "checksum does not match"
    return None


def _next_intact(data: bytes, position: int) -> int:
    """Where the next intact frame or footer starts, or the end of `data`."""
    while (position := data.find(b"\xffAP", position)) >= 0:
        if _problem_at(data, position) is None:
            return position
        position += 1
    return len(data)
