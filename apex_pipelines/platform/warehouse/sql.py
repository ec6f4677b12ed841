"""Just enough of ClickHouse's grammar to serve a statement over HTTP.

Belongs here: where a statement's keywords, FORMAT clause and inline data are. Does not belong here: what a
statement means; the engine's own parser judges that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import NESTING, Token, identifier, tokens

# Statements that yield rows through an output format. What is missing here runs as a command: its (small)
# result is returned whole.
_ROW_KEYWORDS = frozenset(
    {b"SELECT", b"WITH", b"FROM", b"(", b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN"}
)
# Commands whose answer is rows, if only none.
_ANSWERING_COMMANDS = frozenset({b"KILL", b"CHECK", b"BACKUP", b"RESTORE"})


class Kind(Enum):
    """How a statement is run."""

    ROWS = "rows"  # result through an output format, streamed
    COMMAND = "command"  # no rows, or few
    INSERT = "insert"  # data follows the text, streamed in
    INSERT_FROM_INPUT = "insert from input"  # INSERT ... SELECT ... FROM input(...), data follows


@dataclass(frozen=True, slots=True)
class InputCall:
    """Where `input('structure')` stands in an INSERT ... SELECT, and the structure."""

    start: int
    end: int
    structure: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, cut into what the engine is given.

    Attributes
    ----------
    text : bytes
        The statement without its FORMAT clause, inline data and closing semicolon.
    keyword : bytes
        First keyword, upper case.
    format : str or None
        Format named by the statement.
    tail : bytes
        A SETTINGS clause that stood after FORMAT, else empty.
    data_start : int
        Offset of the data in what was parsed; only for inserts.
    """

    kind: Kind
    text: bytes
    keyword: bytes
    format: str | None = None
    tail: bytes = b""
    data_start: int = 0
    input: InputCall | None = None
    # Where an insert's SETTINGS clause begins in `text`.
    settings_start: int | None = None

    def from_file(self, path: str) -> bytes:
        """The insert with its data to be read from `path`."""
        at = len(self.text) if self.settings_start is None else self.settings_start
        return b"%s FROM INFILE '%s' COMPRESSION 'none' %s FORMAT %s" % (
            self.text[:at], path.encode(), self.text[at:], self.input_format.encode(),
        )  # fmt: skip

    @property
    def input_format(self) -> str:
        """Format of the data that follows an insert."""
        return self.format or "Values"

    @property
    def input_structure(self) -> str:
        """Structure that `input` was called with."""
        assert self.input is not None  # noqa: S101 - the kind of statement says so
        return self.input.structure

    def with_input(self, table: str) -> bytes:
        """The statement with its call of `input` replaced by a table."""
        assert self.input is not None  # noqa: S101
        return self.text[: self.input.start] + identifier(table) + self.text[self.input.end :]

    @property
    def answers(self) -> bool:
        """Whether the statement has a result, be it empty."""
        return self.kind is Kind.ROWS or self.keyword in _ANSWERING_COMMANDS

    @property
    def modifies(self) -> bool:
        """Whether a read-only request must refuse it. SET and USE last no longer than the session."""
        if self.keyword == b"CREATE":
            return re.match(rb"(?i)create\s+(or\s+replace\s+)?temporary\s", self.text.lstrip()) is None
        return self.kind is not Kind.ROWS and self.keyword not in (b"SET", b"USE")

    @property
    def takes_data(self) -> bool:
        """Whether data follows the text."""
        return self.kind in (Kind.INSERT, Kind.INSERT_FROM_INPUT)

    @property
    def writes(self) -> bool:
        """Whether it puts new rows on disk."""
        if self.keyword == b"CREATE":
            return any(token.text == b"SELECT" for token in tokens(self.text))
        return self.keyword in (b"INSERT", b"RESTORE") or (
            self.keyword == b"WITH" and self.kind is Kind.COMMAND
        )

    @property
    def as_sent(self) -> bytes:
        """The text in a form that the engine logs with its leading blanks, which it would else drop."""
        return b"/**/" + self.text if self.text[:1].isspace() else self.text

    def into_file(self, path: str, default_format: str) -> bytes:
        """The statement with its result written to `path`, in its own or the given format."""
        return b"%s\nINTO OUTFILE '%s' TRUNCATE FORMAT %s %s" % (
            self.as_sent, path.encode(), (self.format or default_format).encode(), self.tail,
        )  # fmt: skip


class _Incomplete(Exception):
    """The text ends before the question is decided."""


def parse(text: bytes, *, complete: bool) -> Statement | None:
    """The one statement of `text`.

    Parameters
    ----------
    complete : bool
        Whether `text` is all there is. Else None is returned while more is needed to decide; an insert is
        decided where its data begins, anything else only at the end.

    Raises
    ------
    QueryError
        For an empty query, several statements, and clauses that name the server's own files.
    """
    stream = tokens(text)
    first = next(stream, None)
    if first is None:
        if complete:
            raise QueryError("SYNTAX_ERROR", "Empty query")
        return None
    if not complete and first.end == len(text):
        return None
    if first.text in (b"INSERT", b"WITH"):
        try:
            if first.text == b"WITH" and not _with_inserts(stream, complete):
                return _parse_whole(text, first) if complete else None
            statement = _parse_insert(text, stream, complete)
        except _Incomplete:
            statement = None
            if complete:
                return Statement(Kind.COMMAND, text, b"INSERT")
        if statement is not None or not complete:
            return statement
    if not complete:
        return None
    return _parse_whole(text, first)


def _with_inserts(stream: Iterator[Token], complete: bool) -> bool:
    """Whether WITH introduces an insert rather than a query; leaves the stream behind INSERT INTO."""
    depth = 0
    before = b""
    for token in stream:
        depth += NESTING.get(token.text, 0)
        if depth == 0 and token.kind == "word":
            if before == b"INSERT" and token.text == b"INTO":
                return True
            if token.text == b"SELECT":
                return False
        before = token.text
    if complete:
        return False
    raise _Incomplete


def _parse_insert(text: bytes, stream: Iterator[Token], complete: bool) -> Statement | None:
    """An insert whose data follows, or None when it is an INSERT ... SELECT."""

    def following() -> Token:
        token = next(stream, None)
        if token is None or token.kind == "open" or (not complete and token.end >= len(text)):
            raise _Incomplete
        return token

    token = following()
    if token.text == b"INTO":
        token = following()
    if token.text == b"TABLE":
        token = following()
    if token.text == b"FUNCTION":
        token = following()
    token = following()  # past the first part of the name, whatever word it is
    while token.text == b".":
        following()
        token = following()
    selects = False
    call: InputCall | None = None
    settings_start: int | None = None
    while True:
        if token.text == b"SETTINGS" and token.kind == "word" and settings_start is None:
            settings_start = token.start
        if token.text == b"(":
            # A bracket after the table's name holds columns or a query; inside a query, anything.
            inner = _skip_group(following)
            selects = selects or inner.subquery
            call = call or inner.call
        elif token.text in (b"SELECT", b"WITH") and token.kind == "word":
            selects = True
        elif token.text == b"INPUT" and selects:
            call, token = _input_call(token, following)
            continue
        elif token.text == b"FROM" and not selects:
            if following().text == b"INFILE":
                raise QueryError(
                    "UNKNOWN_TYPE_OF_QUERY", "INSERT ... FROM INFILE reads a client's file; send the data"
                )
            selects = True
        elif token.text == b"VALUES" and not selects:
            return Statement(
                Kind.INSERT,
                text[: token.start],
                b"INSERT",
                "Values",
                data_start=token.end,
                settings_start=settings_start,
            )
        elif token.text == b"FORMAT" and (call is not None or not selects):
            name = following()
            tail, end = _trailing_settings(text, name.end, complete)
            return Statement(
                Kind.INSERT if call is None else Kind.INSERT_FROM_INPUT,
                text[: token.start] + tail,
                b"INSERT",
                text[name.start : name.end].decode("latin-1"),
                data_start=_data_start(text, end, complete),
                input=call,
                settings_start=token.start if settings_start is None and tail else settings_start,
            )
        elif token.text == b";":
            raise _Incomplete
        token = following()


@dataclass(slots=True)
class _Group:
    """What stood in a pair of brackets."""

    subquery: bool = False
    call: InputCall | None = None


def _skip_group(following: Callable[[], Token]) -> _Group:
    """Go to the bracket that closes."""
    group, depth = _Group(), 1
    token = following()
    group.subquery = token.text in (b"SELECT", b"WITH")
    while True:
        if token.text == b"INPUT" and token.kind == "word":
            group.call, token = _input_call(token, following)
            continue
        depth += NESTING.get(token.text, 0)
        if not depth:
            return group
        token = following()


def _input_call(word: Token, following: Callable[[], Token]) -> tuple[InputCall | None, Token]:
    """The call of `input` that begins with `word`, if it is one, and the token behind what was read."""
    bracket = following()
    if bracket.text != b"(":
        return None, bracket
    literal, closing = following(), following()
    if literal.kind != "string" or closing.text != b")":
        raise QueryError("BAD_ARGUMENTS", "Table function 'input' needs its structure as one string")
    structure = re.sub(rb"\\(.)|'(')", rb"\1\2", literal.text[1:-1]).decode("utf-8", "surrogateescape")
    return InputCall(word.start, closing.end, structure), following()


def _trailing_settings(text: bytes, start: int, complete: bool) -> tuple[bytes, int]:
    """The clause `SETTINGS name = value, ...` after a FORMAT name, if there is one, and where it ends."""
    stream = tokens(text, start)
    token = next(stream, None)
    if token is None or token.end >= len(text):
        if not complete:
            raise _Incomplete
        if token is None:
            return b"", start
    assert token is not None  # noqa: S101
    if token.text != b"SETTINGS":
        return b"", start
    end = token.end
    while True:
        name, equals, value = next(stream, None), next(stream, None), next(stream, None)
        if value is not None and value.text in (b"-", b"+"):
            value = next(stream, None)
        if name is None or equals is None or value is None:
            if complete:
                return b"", start
            raise _Incomplete
        if equals.text != b"=":
            return b"", start  # data that happens to begin with the word
        end = value.end
        comma = next(stream, None)
        if comma is None or comma.text != b",":
            return text[token.start : end] + b" ", end


def _data_start(text: bytes, position: int, complete: bool) -> int:
    """Where data begins after FORMAT: past blanks and one line break, as ClickHouse's parser has it."""
    while position < len(text) and text[position] in b" \t\f":
        position += 1
    if position + 1 >= len(text) and not complete:
        raise _Incomplete
    if text[position : position + 1] == b";":
        raise QueryError("SYNTAX_ERROR", "You have excessive ';' symbol before data for INSERT")
    if text[position : position + 1] == b"\r":
        position += 1
    if text[position : position + 1] == b"\n":
        position += 1
    return position


def _parse_whole(text: bytes, first: Token) -> Statement:
    """A statement that ends with its text."""
    depth = 0
    end = len(text)
    marks: list[tuple[int, Token]] = []  # with their depth
    closed = False
    for token in tokens(text):
        if closed:
            raise QueryError(
                "SYNTAX_ERROR",
                f"Syntax error (Multi-statements are not allowed): failed at position {token.start + 1}",
            )
        if token.text == b";" and depth == 0:
            closed, end = True, token.start
            continue
        depth += NESTING.get(token.text, 0)
        marks.append((depth, token))
    top = [token for level, token in marks if level == 0]
    keyword = first.text
    # A bracketed query may carry FORMAT after its bracket; WITH may also introduce an INSERT ... SELECT.
    inserts = keyword == b"INSERT" or (keyword == b"WITH" and _inserts_into(top))
    for token, after in pairwise(top):
        if token.text == b"INTO" and after.text == b"OUTFILE":
            raise QueryError(
                "INTO_OUTFILE_NOT_ALLOWED", "INTO OUTFILE is not allowed: it names a client's file"
            )
    clause = _format_clause(top)
    rows = keyword in _ROW_KEYWORDS and not inserts
    if not (rows or keyword in _ANSWERING_COMMANDS or inserts) or clause is None:
        kind = Kind.ROWS if rows else Kind.COMMAND
        return Statement(kind, _without_last_comment(text, top, end), keyword)
    name, settings = clause
    format_name = text[name.start : name.end].decode("latin-1")
    before = text[: top[top.index(name) - 1].start]
    tail = text[settings.start : end] if settings else b""
    if inserts:
        return Statement(Kind.COMMAND, before + tail, keyword, format_name)
    return Statement(Kind.ROWS if rows else Kind.COMMAND, before, keyword, format_name, tail)


def _inserts_into(top: list[Token]) -> bool:
    return any(one.text == b"INSERT" and two.text == b"INTO" for one, two in pairwise(top))


def _without_last_comment(text: bytes, top: list[Token], end: int) -> bytes:
    """`text` up to its last token, so that what is appended can't land in a comment."""
    return text[: max((token.end for token in top if token.end <= end), default=end)]


def _format_clause(top: list[Token]) -> tuple[Token, Token | None] | None:
    """The format's name and a SETTINGS token behind it, when the statement ends with such a clause."""
    for index in range(len(top) - 2, 0, -1):
        if top[index].text == b"FORMAT" and top[index].kind == "word" and top[index + 1].kind == "word":
            rest = top[index + 2 :]
            if not rest:
                return top[index + 1], None
            if rest[0].text == b"SETTINGS":
                return top[index + 1], rest[0]
    return None
