"""How commands speak: tables for people, `--json` for programs, one clear line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# In a pipe there is no width to keep to, and folded cells can't be searched.
out = Console(width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True)

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """`--json`: print the result as JSON instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def show(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, title: str = ""
) -> None:
    """Print rows as a table with these columns, or as one JSON list with everything they hold."""
    if as_json:
        click.echo(json.dumps(list(rows), default=str, indent=2))
        return
    if not rows:
        out.print(f"{title + ': ' if title else ''}nothing to show")
        return
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    out.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(str(value))  # customers' own words are not markup
