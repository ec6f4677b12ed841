"""Native blocks in the form of a client's protocol revision, as `client_protocol_version` asks for.

Belongs here: what differs between revisions, and where each column ends inside a block. Does not belong here:
HTTP, the engine, other formats.

The engine writes revision 0, for which a reader needs to know nothing. What later revisions have instead is
ClickHouse's `src/Formats/NativeWriter.cpp`, with the numbers in `src/Core/ProtocolDefines.h`:

| revision | what a block has from there on |
|---|---|
| 1 | a BlockInfo in front |
| 1 to 54404 | no LowCardinality; the plain type in its place |
| 54337 | the zone in the type of a column `DateTime('zone')`; as part of another type it is always there |
| 54452 | aggregate states of the version that their type names |
| 54454 | behind each column's type, a byte that says how it is laid out; 0 is the way of revision 0 |
| 54473 | a second layout of Dynamic and JSON |
| 54480 | a third field in BlockInfo |
| 54492 | strings as all their ends, then all their bytes |

A column's data has no length, so whatever stands behind it is found by walking its values.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.native_layout import Layout, layout_of, type_words, varint

# Largest revision in whose form blocks can be written; the next one changes every string.
LAST_REVISION = 54491

_ZONES = 54337
_LOW_CARDINALITY = 54405
_STATE_VERSIONS = 54452
_CUSTOM_SERIALIZATION = 54454
_SECOND_DYNAMIC = 54473
_OUT_OF_ORDER_BUCKETS = 54480

# Pairs of a field's number and its value, then 0: no overflow row, no bucket, no buckets out of order.
_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff%b\x00"
_OUT_OF_ORDER_FIELD = b"\x03\x00"

_STATE_VERSION = re.compile(r"\bAggregateFunction\((\d+, )")
_AFTER_BRACKET = re.compile(r"\(\n +")
_AFTER_COMMA = re.compile(r",\n +")
_DYNAMIC = {b"DYNAMIC", b"JSON"}
_U64 = struct.Struct("<Q")


class Column(NamedTuple):
    """A column of a result, its type in full."""

    name: str
    type: str


# How the front's own questions about a result begin, by which the query log leaves them out.
DESCRIBING = b"DESCRIBE TABLE /* of a result */ (\n"


def describing(query: bytes) -> bytes:
    """The statement whose rows, as JSONCompactEachRow, are what `described` reads."""
    return DESCRIBING + query + b"\n)"


def described(rows: bytes) -> list[Column]:
    """The columns that a DESCRIBE names, in their order; subcolumns, which a setting adds, are left out."""
    found = [json.loads(line.decode("utf-8", "surrogateescape")) for line in rows.splitlines()]
    # Two fields in the compact form, else seven; one more where subcolumns are listed, to tell them.
    columns = (row[:2] for row in found if len(row) in (2, 7) or not row[-1])
    # Tuples come with their elements on lines of their own; inside quotes a line break is written as \n.
    return [Column(name, _AFTER_COMMA.sub(", ", _AFTER_BRACKET.sub("(", full))) for name, full in columns]


class RevisedBlocks:
    """The blocks of one result, each taken as of revision 0 and given back as of another.

    Parameters
    ----------
    revision : int
        0 to `LAST_REVISION`.
    columns : sequence of Column
        What `DESCRIBE TABLE (query)` says of the result: blocks of revision 0 leave out zones.

    Raises
    ------
    QueryError
        NOT_IMPLEMENTED for a revision, or a column at this revision, whose form can't be written.
    """

    def __init__(self, revision: int, columns: Sequence[Column]) -> None:
        if not 0 <= revision <= LAST_REVISION:
            raise QueryError(
                "NOT_IMPLEMENTED",
                f"Native blocks of client_protocol_version {revision} are not supported; "
                f"the largest that is: {LAST_REVISION}",
            )
        field = _OUT_OF_ORDER_FIELD if revision >= _OUT_OF_ORDER_BUCKETS else b""
        self._info = _BLOCK_INFO % field if revision else b""
        self._columns = [_RevisedColumn.of(column, revision) for column in columns]
        changes = (at for at, column in enumerate(self._columns, 1) if column.sent != column.revised)
        # Columns up to the last that changes: nothing behind it has to be found.
        self._changed = max(changes, default=0)

    def revise(self, block: bytes) -> bytes:
        """One whole block; what has no byte stays so.

        Raises
        ------
        QueryError
            LOGICAL_ERROR for a block that does not have the columns told of. NOT_IMPLEMENTED where the end of
            a column can't be found; only data made for it does that, and only in types without a walk.
        """
        if not block:
            return b""
        if not self._changed:
            return self._info + block
        try:
            return b"".join(self._pieces(block))
        except (IndexError, struct.error) as error:
            raise _unlike("the block ends before its columns do") from error

    def _pieces(self, block: bytes) -> Iterator[bytes | memoryview]:
        view = memoryview(block)
        count, at = varint(block, 0)
        rows, at = varint(block, at)
        if count != len(self._columns):
            raise _unlike(f"{count} columns in place of {len(self._columns)}")
        kept = 0
        yield self._info
        for index, column in enumerate(self._columns[: self._changed]):
            length, at = varint(block, at)
            at += length
            if not block.startswith(column.sent, at):
                raise _unlike(f"another type in column {column.name}, described as {column.type}")
            yield view[kept:at]
            yield column.revised
            kept = at = at + len(column.sent)
            if rows and index + 1 < self._changed:
                at = self._end(block, at, rows, index)
        yield view[kept:]

    def _end(self, block: bytes, at: int, rows: int, index: int) -> int:
        column, following = self._columns[index : index + 2]
        if column.layout is not None:
            return column.layout.end(block, at, rows)
        # What heads the next column must come, once for each column with this name and type. If it is not
        # there more often than that, the first is the next column's.
        places = [at - 1]
        for _ in range(1 + sum(other.head == following.head for other in self._columns[index + 1 :])):
            places.append(block.find(following.head, places[-1] + 1))
            if places[-1] < 0:
                break
        if places[-1] >= 0 or places[1] < 0:
            raise QueryError(
                "NOT_IMPLEMENTED",
                f"Can't tell where column {column.name} of type {column.type} ends in a Native block; "
                f"select it last, or ask for no client_protocol_version",
            )
        return places[1]


def revise_document(revision: int, document: bytes) -> bytes:
    """A whole result of any number of blocks, with the zones that are in it.

    For what can't be described and is small: the answers to SHOW, DESCRIBE, EXPLAIN and the like. None of
    those has a column `DateTime('zone')`.

    Raises
    ------
    QueryError
        As `RevisedBlocks`; NOT_IMPLEMENTED too for a column whose type has no walk.
    """
    if not revision:
        return document
    pieces, start = [], 0
    try:
        while start < len(document):
            columns, end = _walk(document, start)
            pieces.append(RevisedBlocks(revision, columns).revise(document[start:end]))
            start = end
    except (IndexError, struct.error) as error:
        raise _unlike("the block ends before its columns do") from error
    # Also refuses the revision where there is no block.
    return b"".join([RevisedBlocks(revision, []).revise(b""), *pieces])


def _walk(document: bytes, at: int) -> tuple[list[Column], int]:
    """The columns of the block that begins at `at`, and where it ends."""
    count, at = varint(document, at)
    rows, at = varint(document, at)
    columns = []
    for _ in range(count):
        name, at = _text(document, at)
        type_name, at = _text(document, at)
        columns.append(Column(name, type_name))
        layout = layout_of(type_name)
        if layout is None:
            raise QueryError("NOT_IMPLEMENTED", f"Can't find the end of column {name} of type {type_name}")
        at = layout.end(document, at, rows)
    if at > len(document):
        raise IndexError(at)
    return columns, at


@dataclass(frozen=True, slots=True)
class _RevisedColumn:
    """A column, and what stands before its data: at revision 0, and as it is to be."""

    name: str
    type: str
    head: bytes  # name and type at revision 0
    sent: bytes  # type at revision 0
    revised: bytes
    layout: Layout | None

    @classmethod
    def of(cls, column: Column, revision: int) -> _RevisedColumn:
        name, full = column
        words = type_words(full)
        if 0 < revision < _LOW_CARDINALITY and b"LOWCARDINALITY" in words:
            raise _refused(column, revision, f"it would have to be another type before {_LOW_CARDINALITY}")
        if revision >= _STATE_VERSIONS and _STATE_VERSION.search(full):
            raise _refused(column, revision, f"the engine writes its states as of {_STATE_VERSIONS - 1}")
        if revision >= _SECOND_DYNAMIC and _DYNAMIC & words:
            raise _refused(column, revision, f"the engine writes it as of {_SECOND_DYNAMIC - 1}")
        bare = _STATE_VERSION.sub(lambda match: match.group()[: -len(match.group(1))], full)
        if bare.startswith("DateTime("):
            bare = "DateTime"
        sent = _counted(bare)
        revised = _counted(full if bare == "DateTime" and revision >= _ZONES else bare)
        if revision >= _CUSTOM_SERIALIZATION:
            revised += b"\x00"
        return cls(name, full, _counted(name) + sent, sent, revised, layout_of(full))


def _refused(column: Column, revision: int, reason: str) -> QueryError:
    return QueryError(
        "NOT_IMPLEMENTED",
        f"Column {column.name} of type {column.type} can't be sent as of client_protocol_version {revision}: "
        f"{reason}",
    )


def _unlike(what: str) -> QueryError:
    return QueryError("LOGICAL_ERROR", f"A Native block is not as its query was described: {what}", code=49)


def _text(block: bytes, at: int) -> tuple[str, int]:
    length, at = varint(block, at)
    return block[at : at + length].decode("utf-8", "surrogateescape"), at + length


def _counted(text: str) -> bytes:
    """`text` after the length of its bytes, as a name or a type stands in a block."""
    data = text.encode("utf-8", "surrogateescape")
    length, counted = len(data), bytearray()
    while length > 0x7F:
        counted.append(length & 0x7F | 0x80)
        length >>= 7
    counted.append(length)
    return bytes(counted) + data
