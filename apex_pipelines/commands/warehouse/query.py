"""`apex warehouse query`, for scripts: its options, and where SQL comes from.

Belongs here: the command line. Does not belong here: running what it says (`running`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import click

from apex_pipelines.commands.warehouse.client import (
    Decorated,
    connected,
    connection_options,
)
from apex_pipelines.commands.warehouse.running import InsertData, ScriptRun, run_script
from apex_pipelines.settings import Settings


class Assignments(click.ParamType[tuple[str, str]]):
    """`name=value`, as a pair."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The pair; a value may be empty and may hold further `=`."""
        name, equals, given = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, given


@contextmanager
def _source(text: str | None, file: str | None) -> Iterator[IO[bytes]]:
    """Where SQL comes from: the argument, a file, or standard input."""
    if text is not None and file is not None:
        raise click.UsageError("SQL is given twice: as an argument and by --file")
    if text is not None and text != "-":
        yield BytesIO(text.encode("utf-8", "surrogateescape"))
    elif file is not None and file != "-":
        with Path(file).open("rb") as opened:
            yield opened
    elif (text or file) is None and sys.stdin.isatty():
        raise click.UsageError(
            "give SQL as an argument, by --file or on standard input; or `apex warehouse shell`"
        )
    else:
        yield sys.stdin.buffer


def query_options(command: Decorated) -> Decorated:
    """What `apex warehouse query` takes besides SQL and connection."""
    pairs: dict[str, Any] = {"multiple": True, "type": Assignments()}
    path = click.Path(path_type=Path)
    options = [
        click.option("--file", "-f", help="Read SQL from this file; - is standard input."),
        click.option("--data", "-d", type=path, help="File with data for an INSERT [standard input]."),
        click.option("--format", "format_name", help="Format of results that name none [PrettyCompact on a "
                     "terminal, else TabSeparated]."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a row (JSONEachRow)."),
        click.option("--param", "-p", "params", **pairs, help="Value for {name:Type} in the SQL."),
        click.option("--setting", "-s", "options", **pairs, help="ClickHouse setting for every statement."),
        click.option("--progress/--no-progress", default=None,
                     help="Show seconds and bytes on stderr [on a terminal]."),
        click.option("--time", "timing", is_flag=True, help="Print seconds and rows read to stderr."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    "query",
    epilog="""\b
Examples:
  apex warehouse query "select count() from raw.events"
  apex warehouse query --json -p plan=indie "select * from customers where plan = {plan:String}" | jq .
  apex warehouse query "insert into t format CSVWithNames" --data rows.csv
  zcat rows.tsv.gz | apex warehouse query "insert into t format TSV"
  apex warehouse query --file report.sql --format CSVWithNames > report.csv
""",
)
@click.argument("sql", required=False)
@query_options
@connection_options
@click.pass_obj
def query(settings: Settings, /, sql: str | None, **given: Any) -> None:
    """Run SQL and write the result to standard output as it comes.

    SQL is the argument, --file, or standard input. Statements are separated by `;`, run one after the other
    in one session, and stop at the first error. Data of an INSERT within the SQL goes on to its end; VALUES
    end at the `;`. Exits with 1 on an error, which goes to stderr, and with 130 on Ctrl-C, which cancels.
    """
    if given["as_json"] and given["format_name"]:
        raise click.UsageError("--json is a format; it can't be combined with --format")
    connection = connected(
        settings,
        user=given["user"],
        read_only=given["read_only"],
        origin="apex warehouse query",
        options=dict(given["options"]),
        parameters=dict(given["params"]),
    )
    with _source(sql, given["file"]) as source, connection as server:
        data = InsertData(given["data"], piped=source is not sys.stdin.buffer)
        format_name = "JSONEachRow" if given["as_json"] else given["format_name"]
        run = ScriptRun(server, data, format_name, given["progress"], given["timing"])
        run_script(run, source)
