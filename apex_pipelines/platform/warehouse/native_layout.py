"""Where a column's data ends inside a Native block: its type's layout, walked.

Belongs here: how each type lies in a block of revision 0. Does not belong here: revisions (`native`).
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise, repeat

from apex_pipelines.platform.warehouse.lexer import split_types, tokens

_U64 = struct.Struct("<Q")


class Layout(ABC):
    """How the values of a type lie in a block: what comes once in front, then the rows."""

    def front(self, block: bytes, at: int) -> int:
        """Where what comes once, before any row, ends that begins at `at`."""
        return at

    @abstractmethod
    def rows(self, block: bytes, at: int, rows: int) -> int:
        """Where that many rows end."""

    def end(self, block: bytes, at: int, rows: int) -> int:
        """Where a column ends; without rows it has not a byte."""
        return self.rows(block, self.front(block, at), rows) if rows else at


@dataclass(frozen=True, slots=True)
class _Fixed(Layout):
    size: int

    def rows(self, block: bytes, at: int, rows: int) -> int:
        return at + self.size * rows


class _String(Layout):
    """A length, seven bits a byte and the low ones first, then the bytes."""

    def rows(self, block: bytes, at: int, rows: int) -> int:
        # Every string of a result passes here, so there is no call for lengths below 16 KiB.
        for _ in repeat(None, rows):
            low = block[at]
            if low < 0x80:
                at += 1 + low
            elif (high := block[at + 1]) < 0x80:
                at += 2 + (low & 0x7F | high << 7)
            else:
                length, at = varint(block, at)
                at += length
        return at


@dataclass(frozen=True, slots=True)
class _Nullable(Layout):
    """A byte a row that says whether it is null, then a value for every row."""

    inner: Layout

    def front(self, block: bytes, at: int) -> int:
        return self.inner.front(block, at)

    def rows(self, block: bytes, at: int, rows: int) -> int:
        return self.inner.rows(block, at + rows, rows)


@dataclass(frozen=True, slots=True)
class _Tuple(Layout):
    elements: tuple[Layout, ...]

    def front(self, block: bytes, at: int) -> int:
        for element in self.elements:
            at = element.front(block, at)
        return at

    def rows(self, block: bytes, at: int, rows: int) -> int:
        for element in self.elements:
            at = element.rows(block, at, rows)
        return at


@dataclass(frozen=True, slots=True)
class _Array(Layout):
    """Where each row's elements end, counted in elements, then all elements."""

    inner: Layout

    def front(self, block: bytes, at: int) -> int:
        return self.inner.front(block, at)

    def rows(self, block: bytes, at: int, rows: int) -> int:
        if not rows:
            return at
        at += 8 * rows
        [elements] = _U64.unpack_from(block, at - 8)
        return self.inner.rows(block, at, elements)


@dataclass(frozen=True, slots=True)
class _LowCardinality(Layout):
    """A version in front; then flags with the width of an index, the distinct values, an index a row."""

    values: Layout

    def front(self, block: bytes, at: int) -> int:
        return at + 8

    def rows(self, block: bytes, at: int, rows: int) -> int:
        if not rows:
            return at
        flags, count = struct.unpack_from("<QQ", block, at)
        at = self.values.rows(block, at + 16, count)
        [indexes] = _U64.unpack_from(block, at)
        return int(at + 8 + (indexes << (flags & 0xFF)))


@dataclass(frozen=True, slots=True)
class _Variant(Layout):
    """A mode in front; a byte a row that says which type it has, 255 for null; each type's values."""

    alternatives: tuple[Layout, ...]

    def front(self, block: bytes, at: int) -> int:
        at += 8
        for alternative in self.alternatives:
            at = alternative.front(block, at)
        return at

    def rows(self, block: bytes, at: int, rows: int) -> int:
        which, at = block[at : at + rows], at + rows
        for index, alternative in enumerate(self.alternatives):
            at = alternative.rows(block, at, which.count(index))
        return at


_FIXED = {
    name: _Fixed(size)
    for size, names in {
        1: "UInt8 Int8 Bool Enum8 Nothing",
        2: "UInt16 Int16 Date Enum16 BFloat16",
        4: "UInt32 Int32 Float32 Date32 DateTime Time IPv4",
        8: "UInt64 Int64 Float64 DateTime64 Time64",
        16: "UInt128 Int128 UUID IPv6",
        32: "UInt256 Int256",
    }.items()
    for name in names.split()
}
_GEO = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "MultiLineString": "Array(LineString)",
    "Polygon": "Array(Ring)",
    "MultiPolygon": "Array(Polygon)",
    # A variant's types lie in the order of their names.
    "Geometry": "Variant(LineString, MultiLineString, MultiPolygon, Point, Polygon, Ring)",
}
_BITS = {"Int8": 8, "BFloat16": 16, "Float32": 32, "Float64": 64}
_TYPE = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)


def layout_of(type_name: str) -> Layout | None:
    """How values of this type lie in a block of revision 0; None for a type that can't be walked."""
    try:
        return _layout(type_name)
    except _NoWalk:
        return None


class _NoWalk(Exception):
    """A type whose values have no known layout."""


def _layout(type_name: str) -> Layout:
    match = _TYPE.fullmatch(type_name)
    if match is None:
        raise _NoWalk(type_name)
    family, inside = match.groups()
    arguments = split_types(inside) if inside else []
    if family in _FIXED:
        return _FIXED[family]
    if family in _GEO:
        return _layout(_GEO[family])
    match family, arguments:
        case "String", []:
            return _String()
        case "FixedString", [size]:
            return _Fixed(int(size))
        case "Decimal", [precision, _]:
            digits = int(precision)
            return _Fixed(4 if digits < 10 else 8 if digits < 19 else 16 if digits < 39 else 32)
        case "QBit", [element, dimension] if element in _BITS:
            # A plane for each bit of the numbers, in it a bit for each number.
            return _Fixed(_BITS[element] * -(-int(dimension) // 8))
        case "Nullable", [inner]:
            return _Nullable(_layout(inner))
        case "LowCardinality", [inner]:
            # Null is one of the distinct values, and those are not nullable.
            return _LowCardinality(_layout(re.sub(r"^Nullable\((.*)\)$", r"\1", inner, flags=re.DOTALL)))
        case "Array", [inner]:
            return _Array(_layout(inner))
        case "Map", [key, value]:
            return _Array(_Tuple((_layout(key), _layout(value))))
        case "Tuple", []:
            return _FIXED["Nothing"]
        case "Tuple", elements:
            return _Tuple(tuple(_layout(_element_type(element)) for element in elements))
        case "Nested", elements:
            return _Array(_Tuple(tuple(_layout(_element_type(element)) for element in elements)))
        case "Variant", alternatives:
            return _Variant(tuple(_layout(alternative) for alternative in alternatives))
        case "SimpleAggregateFunction", [_, inner]:
            return _layout(inner)
    if family.startswith("Interval"):
        return _Fixed(8)
    raise _NoWalk(type_name)


def type_words(type_name: str) -> set[bytes]:
    """What stands in a type as the name of a type or a function, upper case, but not as an element's."""
    found = tokens(type_name.encode("utf-8", "surrogateescape") + b")")
    return {
        one.text
        for one, after in pairwise(found)
        if one.kind == "word" and after.kind not in ("word", "quoted")
    }


def _element_type(element: str) -> str:
    """The type of a tuple's element, which may have a name before it."""
    text = element.encode("utf-8", "surrogateescape")
    found = tokens(text)
    next(found)
    second = next(found, None)
    if second is None or second.kind != "word":
        return element
    return text[second.start :].decode("utf-8", "surrogateescape")


def varint(block: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte and the low ones first, and where it ends."""
    value = shift = 0
    while True:
        byte = block[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
