"""Results in a terminal: as a table when it fits, else row by row.

Belongs here: reading a result's beginning, drawing it. Does not belong here: asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

SHELL_FORMAT = "TabSeparatedWithNamesAndTypes"
DEFAULT_ROWS = 1000
# A column is not squeezed below this for the sake of a table; the row is then shown vertically.
NARROWEST_COLUMN = 24
_NUMBER = re.compile(r"(?:Nullable\()?(?:U?Int|B?Float|Decimal)")
_ESCAPES = {"b": "\b", "f": "\f", "r": "\r", "n": "\n", "t": "\t", "0": "\0"}
# What a customer sent must not steer the terminal.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}


@dataclass(frozen=True, slots=True)
class Rows:
    """The beginning of a result, its values as text; None is NULL."""

    names: Sequence[str]
    types: Sequence[str]
    values: Sequence[Sequence[str | None]]
    more: bool


def read_rows(pieces: Iterator[bytes], limit: int) -> Rows:
    """Read up to `limit` rows of a result in SHELL_FORMAT; 0 is no limit."""
    lines: list[bytes] = []
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        lines += whole
        if limit and len(lines) > limit + 2:
            break
    table = [[_value(cell) for cell in line.decode("utf-8", "replace").split("\t")] for line in lines]
    names, types = ([cell or "" for cell in line] for line in (*table[:2], *([], [])[len(table[:2]) :]))
    values = table[2 : limit + 2] if limit else table[2:]
    return Rows(names, types, values, more=len(table) - 2 > len(values))


def _value(cell: str) -> str | None:
    if cell == "\\N":
        return None
    plain = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), cell)
    return plain.translate(_VISIBLE)


def result_table(rows: Rows) -> Table:
    """Rows as a table, numbers to the right."""
    table = Table()
    for name, kind in zip(rows.names, rows.types, strict=True):
        justify: Any = "right" if _NUMBER.match(kind) else "left"
        table.add_column(Text(name), justify=justify, overflow="fold")
    for row in rows.values:
        table.add_row(*(Text("NULL", style="dim") if value is None else Text(value) for value in row))
    return table


def fits(rows: Rows, width: int) -> bool:
    """Whether a table of the rows can be read at this width, in characters."""
    columns = zip(rows.names, *rows.values, strict=True)
    widths = (max(_width(cell or "NULL") for cell in column) for column in columns)
    return sum(min(one, NARROWEST_COLUMN) + 3 for one in widths) + 1 <= width


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def vertical(rows: Rows) -> Text:
    """Rows one below the other, a line for each value."""
    longest = max((cell_len(name) for name in rows.names), default=0)
    text = Text()
    for number, row in enumerate(rows.values, 1):
        text.append(f"Row {number}\n", style="bold")
        for name, value in zip(rows.names, row, strict=True):
            text.append(f"  {name}{' ' * (longest - cell_len(name))}  ", style="cyan")
            text.append("NULL\n" if value is None else f"{value}\n", style="dim" if value is None else "")
    return text
