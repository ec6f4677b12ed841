"""Cutting a script into statements, and an insert's data from its text.

Belongs here: where statements begin and end, in a source of any size. Does not belong here: running them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO

from apex_pipelines.platform.warehouse import sql as grammar
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import tokens

READ_BYTES = 1 << 16
DATA_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a script.

    Attributes
    ----------
    text : bytes
        The statement; of an insert with its data in the script only what stands before the data.
    line : int
        Line of the script it begins at, from 1.
    data : iterator of bytes or None
        The data that follows an insert in the script.
    needs_data : bool
        Whether it is an insert whose data comes from elsewhere.
    last : bool
        Whether nothing follows.
    """

    text: bytes
    line: int
    data: Iterator[bytes] | None = None
    needs_data: bool = False
    last: bool = True

    @property
    def keyword(self) -> bytes:
        """First word, upper case."""
        return next((token.text for token in tokens(self.text)), b"")


class Script:
    """Statements separated by `;`, read as far as is needed to run the next one.

    VALUES of an insert end at its `;` like any statement. Data in any other format goes on to the end of the
    script, and is not held: the insert is the last statement.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._text = b""
        self._ended = False
        self._line = 1

    def __iter__(self) -> Iterator[Statement]:
        while self._skip_blank():
            while (statement := self._first()) is None:
                self._read_more()
            yield statement

    def _read_more(self) -> None:
        # As much again as there is, since all of it is looked through once more.
        piece = self._source.read(max(READ_BYTES, len(self._text)))
        self._ended = not piece
        self._text += piece

    def _advance(self, end: int) -> None:
        self._line += self._text.count(b"\n", 0, end)
        self._text = self._text[end:]

    def _skip_blank(self) -> bool:
        """Go to the next statement; False at the end."""
        while True:
            start = next((token.start for token in tokens(self._text) if token.text != b";"), None)
            if start is not None:
                self._advance(start)
                return True
            if self._ended:
                return False
            self._read_more()

    def _first(self) -> Statement | None:
        """The statement that the text begins with; None while more of it must be read to tell."""
        end = next((token.start for token in tokens(self._text) if token.text == b";"), None)
        complete = end is not None or self._ended
        text = self._text[:end]
        insert = _insert_with_data(text, complete=complete)
        if insert is None:
            return self._cut(text) if complete else None
        inline = bool(text[insert.data_start :].strip())
        if insert.input_format.lower() == "values":
            return self._cut(text, needs_data=not inline) if complete else None
        if inline:
            head = Statement(text[: insert.data_start], self._line, data=self._rest(insert.data_start))
            self._text, self._ended = b"", True
            return head
        return self._cut(text[: insert.data_start], len(text), needs_data=True) if complete else None

    def _cut(self, text: bytes, size: int | None = None, *, needs_data: bool = False) -> Statement:
        line = self._line
        self._advance(len(text) if size is None else size)
        if needs_data:
            text = text.rstrip() + b"\n"  # one line break stands between FORMAT and data
        return Statement(text, line, needs_data=needs_data, last=not self._skip_blank())

    def _rest(self, start: int) -> Iterator[bytes]:
        return chain((self._text[start:],), iter(lambda: self._source.read(DATA_BYTES), b""))


def _insert_with_data(text: bytes, *, complete: bool) -> grammar.Statement | None:
    """The insert that `text` is, when data follows it; None otherwise, or while it is unclear."""
    if next(tokens(text)).text not in (b"INSERT", b"WITH"):
        return None
    try:
        found = grammar.parse(text, complete=complete)
    except QueryError:
        return None  # the server will say so in its own words
    return found if found and found.kind in (grammar.Kind.INSERT, grammar.Kind.INSERT_FROM_INPUT) else None
