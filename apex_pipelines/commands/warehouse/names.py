"""Names to complete at the prompt: keywords, functions, databases, tables, columns.

Belongs here: which names there are, and which suit. Does not belong here: the prompt (`shell`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from apex_pipelines.commands.warehouse.client import QueryFailed, Warehouse
from apex_pipelines.platform.warehouse.lexer import identifier, tokens

_WORDS = """
    select distinct from where prewhere group by order limit offset having with as and or not in between
    like ilike is null join left right inner outer full cross asof any all anti semi using on union
    except intersect insert into values format settings create replace temporary table view materialized
    database dictionary if exists engine partition primary key sample ttl comment alter add drop modify
    rename column index truncate optimize final describe show databases tables columns use set explain
    kill query case when then else end cast interval asc desc nulls first last array rollup cube totals
    over window rows range preceding following current row unbounded qualify fill attach detach exchange
    system grant revoke delete update
"""
KEYWORDS = tuple(_WORDS.split())
_NAMES_SQL = b"""
select 'database', '', '', name from system.databases
union all select 'table', database, '', name from system.tables where lower(database) != 'information_schema'
union all select 'column', database, table, name from system.columns
    where lower(database) != 'information_schema'
union all select 'function', '', '', name from system.functions
"""
NAMES_FRESH_SECONDS = 60
_BEFORE_TABLE = {b"FROM", b"JOIN", b"INTO", b"TABLE", b"DESCRIBE", b"DESC", b"USE", b"EXISTS", b"TRUNCATE"}
_WORD_BEFORE_CURSOR = re.compile(r"(?:(\w+)\.)?(\w*)$")


@dataclass
class Names:
    """Names that the server knows, fetched when they are first wanted and again when they are old.

    Used from the thread that completes; `forget` and `database` are called and set from the prompt's.
    """

    server: Warehouse
    database: str = "default"
    _rows: list[list[str]] = field(default_factory=list)
    _fetched_at: float | None = None

    def forget(self) -> None:
        """Have the names fetched again when they are next wanted."""
        self._fetched_at = None

    def matching(self, before_cursor: str) -> Iterator[tuple[str, str]]:
        """Completions of the word before the cursor, and what each is; most likely ones first."""
        found = _WORD_BEFORE_CURSOR.search(before_cursor)
        owner, word = (found.group(1), found.group(2)) if found else (None, "")
        if not owner and not word and not before_cursor.endswith(" "):
            return
        seen = set()
        for name, kind in self._candidates(before_cursor, owner):
            # A word that is there already would only be in the way of Enter.
            fitting = name.lower().startswith(word.lower()) and name.lower() != word.lower()
            if fitting and name not in seen:
                seen.add(name)
                yield (name.upper() if kind == "keyword" and word.isupper() else name), kind

    def _candidates(self, text: str, owner: str | None) -> Iterator[tuple[str, str]]:
        rows = self._current()
        if owner:
            for kind, at in (("table", 1), ("column", 2)):
                yield from ((row[3], kind) for row in rows if row[0] == kind and row[at] == owner)
            return
        words = [token.text for token in tokens(text.encode("utf-8", "replace"))]
        in_word = re.search(r"\w$", text) is not None
        previous = next(iter(words[-2:-1] if in_word else words[-1:]), b"")
        tables = [(row[3], "table") for row in rows if row[:2] == ["table", self.database]]
        databases = [(row[3], "database") for row in rows if row[0] == "database"]
        if previous in _BEFORE_TABLE:
            yield from (*tables, *databases)
        elif in_word:  # behind a blank anything could follow
            mentioned = {word.decode("utf-8", "replace").lower() for word in words}
            yield from (
                (row[3], "column") for row in rows if row[0] == "column" and row[2].lower() in mentioned
            )
            yield from ((word, "keyword") for word in KEYWORDS)
            yield from ((row[3], "function") for row in rows if row[0] == "function")
            yield from (*tables, *databases)

    def _current(self) -> list[list[str]]:
        now = time.monotonic()
        if self._fetched_at is None or now - self._fetched_at > NAMES_FRESH_SECONDS:
            self._fetched_at = now
            # Whoever types must not be disturbed because names are missing: the statement will tell.
            with suppress(QueryFailed):
                told = self.server.value(_NAMES_SQL, timeout_seconds=10)
                self._rows = [line.split("\t") for line in told.splitlines()]
        return self._rows


class NamesCompleter(Completer):
    """Offers `Names` to the prompt."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Completions of the word before the cursor."""
        before = document.text_before_cursor
        word = re.search(r"\w*$", before)
        for name, kind in self._names.matching(before):
            plain = re.fullmatch(r"\w+", name) is not None
            yield Completion(
                name if plain else identifier(name).decode(),
                start_position=-len(word.group() if word else ""),
                display_meta=kind,
            )
