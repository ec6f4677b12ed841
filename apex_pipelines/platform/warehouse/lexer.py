"""ClickHouse's tokens: words, literals, comments, brackets.

Belongs here: cutting text into tokens, quoting. Does not belong here: what tokens mean together (`sql`).

Everything works on bytes, because an INSERT's data follows its text and may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
      (?P<space>(?:[\s\x00]|\xc2\xa0|\xe2\x80[\x80-\x8f\xa8-\xaf]|\xe2\x81[\x9f-\xa0]|\xe3\x80\x80|\xef\xbb\xbf)+
                | --[^\n]* | \#[ !][^\n]* | //[^\n]*)
    | (?P<comment>/\*)
    | (?P<string>'[^'\\]*(?:(?:\\.|'')[^'\\]*)*' | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
                | \xe2\x80\x98.*?\xe2\x80\x99)
    | (?P<quoted>`[^`\\]*(?:(?:\\.|``)[^`\\]*)*` | "[^"\\]*(?:(?:\\.|"")[^"\\]*)*"
                | \xe2\x80\x9c.*?\xe2\x80\x9d)
    | (?P<number>\d[\w.]*)
    | (?P<word>(?!\xe2\x80[\x98-\x9d])[A-Za-z_\x80-\xff](?:(?!\xe2\x80[\x98-\x9d])[\w$\x80-\xff])*)
    | (?P<open>['`"]|\xe2\x80[\x98\x9c])
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_COMMENT_EDGE = re.compile(rb"/\*|\*/")

# What opens a level of nesting, and what closes one.
NESTING = {b"(": 1, b"[": 1, b"{": 1, b")": -1, b"]": -1, b"}": -1}


@dataclass(frozen=True, slots=True)
class Token:
    """One significant token; `text` is upper case for words and the bare mark for punctuation."""

    kind: str
    text: bytes
    start: int
    end: int


def tokens(text: bytes, start: int = 0) -> Iterator[Token]:
    """Tokens without white space and comments; the last is of kind `open` where a literal is not closed."""
    position = start
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None  # noqa: S101 - the last alternative matches any byte
        position = match.end()
        kind = match.lastgroup if match.lastgroup != "tag" else "string"
        if kind == "space":
            continue
        if kind == "comment":
            end = _end_of_comment(text, position)
            if end is None:
                yield Token("open", b"/*", match.start(), len(text))
                return
            position = end
            continue
        found = match.group()
        yield Token(kind or "mark", found.upper() if kind == "word" else found, match.start(), position)
        if kind == "open":
            return


def _end_of_comment(text: bytes, position: int) -> int | None:
    """Where the comment ends whose inside begins at `position`; comments nest."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(text, position):
        depth += 1 if edge.group() == b"/*" else -1
        if not depth:
            return edge.end()
    return None


def string_literal(value: str) -> bytes:
    """`value` as a ClickHouse string literal."""
    return (
        b"'" + value.encode("utf-8", "surrogateescape").replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
    )


def identifier(name: str) -> bytes:
    """`name` as a quoted ClickHouse identifier."""
    return b"`" + name.encode("utf-8", "surrogateescape").replace(b"\\", b"\\\\").replace(b"`", b"\\`") + b"`"


def replace_word(text: bytes, word: bytes, new: bytes) -> bytes:
    """`text` with an unquoted word replaced wherever it stands outside literals and comments."""
    pieces, position = [], 0
    for token in tokens(text):
        if token.kind == "word" and token.text == word.upper():
            pieces += [text[position : token.start], new]
            position = token.end
    return b"".join([*pieces, text[position:]])


def substitutes(text: bytes, name: str) -> bool:
    """Whether a statement has a substitution `{name:Type}`."""
    wanted = name.encode("utf-8", "surrogateescape")
    if wanted not in text:
        return False
    found = list(tokens(text))
    return any(
        bracket.text == b"{" and text[word.start : word.end] == wanted and colon.text == b":"
        for bracket, word, colon in zip(found, found[1:], found[2:], strict=False)
    )


def split_types(text: str) -> list[str]:
    """The types of a list such as `Int32, Map(String, Array(UInt8))`."""
    types, depth, start = [], 0, 0
    data = text.encode("utf-8", "surrogateescape")
    for token in tokens(data):
        depth += NESTING.get(token.text, 0)
        if token.text == b"," and depth == 0:
            types.append(data[start : token.start])
            start = token.end
    return [part.decode("utf-8", "surrogateescape").strip() for part in [*types, data[start:]]]
