"""`apex warehouse shell`, for a person with a terminal.

Belongs here: the prompt, its commands, its session. Does not belong here: HTTP (`client`), drawing
(`results`).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import deque
from io import BytesIO
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition, completion_is_selected, is_searching
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from rich.text import Text

from apex_pipelines.commands.console import err, out
from apex_pipelines.commands.warehouse.client import (
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    QueryFailed,
    Warehouse,
    connected,
    connection_options,
)
from apex_pipelines.commands.warehouse.names import Names, NamesCompleter
from apex_pipelines.commands.warehouse.results import (
    DEFAULT_ROWS,
    SHELL_FORMAT,
    Rows,
    fits,
    read_rows,
    result_table,
    vertical,
)
from apex_pipelines.commands.warehouse.running import (
    InsertData,
    Meter,
    ScriptRun,
    effort,
    run_script,
    write_out,
)
from apex_pipelines.commands.warehouse.script import Script, Statement
from apex_pipelines.platform.warehouse.lexer import identifier, tokens
from apex_pipelines.settings import Settings

LEAVE = ("exit", "quit", "\\q")
HELP = """\
[bold]SQL[/] runs at the `;` that ends it; Alt-Enter runs it without one.

  \\l         databases
  \\d         tables
  \\d NAME    columns of a table
  \\x         rows one below the other, on or off
  \\?         this help
  \\q         leave, as does Ctrl-D

Ctrl-C cancels what runs. Tab completes, arrows and Ctrl-R find what was run before.
FORMAT in a statement shows its result as ClickHouse formats it, whole."""

_DATABASES_SQL = b"""
select name as database, engine, countIf(t.name != '') as tables
from system.databases left join system.tables as t on t.database = databases.name
group by all order by database"""
_TABLES_SQL = b"""
select database, name as table, engine, total_rows as rows, formatReadableSize(total_bytes) as size
from system.tables
where lower(database) not in ('system', 'information_schema') and not is_temporary
order by database, table"""
_CHANGES_NAMES = {b"CREATE", b"DROP", b"ALTER", b"RENAME", b"ATTACH", b"DETACH", b"EXCHANGE", b"UNDROP"}
# How long a statement waits for the one before it, which was cancelled, to let go of the session.
LOCKED_SECONDS = 60
SESSION_SECONDS = 3600


def is_whole(text: str) -> bool:
    """Whether Enter runs `text`, rather than adding a line to it."""
    plain = text.strip()
    if not plain or plain.startswith("\\") or plain.lower() in LEAVE:
        return True
    last = deque(tokens(plain.encode("utf-8", "replace")), maxlen=1)
    return bool(last) and last[0].text == b";"


class Session:
    """The server's session that a shell works in: its database, settings and temporary tables.

    It ends when it isn't used for SESSION_SECONDS, or with the server; a new one then takes its place.
    """

    def __init__(self, server: Warehouse) -> None:
        self._server = server
        self.database = ""
        self._id = ""

    @property
    def params(self) -> dict[str, str]:
        """Parameters that run a statement in it."""
        return {"session_id": self._id, "session_timeout": str(SESSION_SECONDS), "session_check": "1"}

    def begin(self) -> str:
        """Begin, in the database of the session before; returns the server's version."""
        self._id = str(uuid.uuid4())
        text = b"USE " + identifier(self.database) if self.database else b"SELECT 1"
        self._server.value(text, session=self.params | {"session_check": "0"})
        self.find_database()
        return self._server.value(b"select version()")

    def find_database(self) -> None:
        """Ask which database it is in."""
        self.database = self._server.value(b"select currentDatabase()", session=self.params)

    def again(self, error: QueryFailed, waited_seconds: float) -> bool:
        """Whether a statement that was refused with `error` should be tried once more."""
        if error.code == SESSION_IS_LOCKED and waited_seconds < LOCKED_SECONDS:
            time.sleep(0.05)
            return True
        if error.code == SESSION_NOT_FOUND:
            self.begin()
            err.print("[yellow]The session had ended: its settings and temporary tables are gone.[/]")
            return True
        return False


class Shell:
    """Reads statements from a terminal and shows their results, until told to leave.

    Parameters
    ----------
    history : Path
        File that keeps what was run, readable by its owner alone.
    limit : int
        Rows shown of a result; 0 for all.
    """

    def __init__(self, server: Warehouse, history: Path, limit: int) -> None:
        self._server = server
        self._session = Session(server)
        self._names = Names(server)
        self._history = history
        self._limit = limit
        self._vertical = False

    def run(self) -> None:
        """Greet, and prompt until the end.

        Raises
        ------
        QueryFailed
            When the server can't be reached to begin with.
        """
        version = self._session.begin()
        where = f"ClickHouse {version} at {self._server.http.base_url} as {self._server.user}."
        out.print(f"{where} \\? for help, Ctrl-D leaves.", markup=False, highlight=False)
        prompt = self._prompt()
        while True:
            try:
                text = prompt.prompt().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text.lower().rstrip("; ") in LEAVE:
                return
            self._execute(text)

    def _prompt(self) -> PromptSession[str]:
        self._history.parent.mkdir(parents=True, exist_ok=True)
        self._history.touch(mode=0o600)
        self._history.chmod(0o600)
        # pygments has no type information.
        from pygments.lexers.sql import SqlLexer  # type: ignore[import-untyped]

        return PromptSession(
            lambda: f"{self._session.database}> ",
            multiline=True,
            prompt_continuation=lambda width, line, soft: "-> ".rjust(width),
            history=FileHistory(str(self._history)),
            lexer=PygmentsLexer(SqlLexer),
            completer=NamesCompleter(self._names),
            complete_in_thread=True,
            key_bindings=_enter_runs_whole_statements(),
        )

    def _execute(self, text: str) -> None:
        """Run a command or statements; whatever goes wrong is shown, and the shell goes on."""
        try:
            if text.startswith("\\"):
                self._command(text.rstrip("; "))
            else:
                for statement in Script(BytesIO(text.encode("utf-8", "surrogateescape"))):
                    self._statement(statement)
        except click.ClickException as error:
            err.print(Text(error.message, style="red"), soft_wrap=True)
        except KeyboardInterrupt:
            err.print("[yellow]Cancelled.[/]")

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name == "\\x":
            self._vertical = not self._vertical
            shown = "one below the other" if self._vertical else "as a table where it fits"
            out.print(f"Rows are shown {shown}.")
        elif name == "\\l":
            self._statement(Statement(_DATABASES_SQL, 1))
        elif name == "\\d" and argument.strip():
            self._statement(Statement(b"describe table " + argument.strip().encode(), 1))
        elif name == "\\d":
            self._statement(Statement(_TABLES_SQL, 1))
        elif name == "\\?":
            out.print(HELP, highlight=False)
        else:
            raise click.ClickException(f"there is no command {name}; \\? lists them")

    def _statement(self, statement: Statement) -> None:
        if statement.needs_data:
            raise click.ClickException(
                "this INSERT has no data; to insert a file: apex warehouse query 'INSERT ...' --data FILE"
            )
        # Held, since it may be sent twice; the `;` ends the statement and is not data.
        data = b"".join(statement.data or ()).rstrip().removesuffix(b";")
        started = time.monotonic()
        while True:
            try:
                self._run(statement.text, data)
                break
            except QueryFailed as error:
                if not self._session.again(error, time.monotonic() - started):
                    raise
        if statement.keyword == b"USE":
            self._session.find_database()
        if statement.keyword in _CHANGES_NAMES:
            self._names.forget()
        self._names.database = self._session.database

    def _run(self, text: bytes, data: bytes) -> None:
        with (
            Meter(shown=True) as meter,
            self._server.run(
                text, data=[data] if data else (), format_name=SHELL_FORMAT, session=self._session.params
            ) as answer,
        ):
            pieces = meter.count(answer.pieces())
            if answer.format not in ("", SHELL_FORMAT):
                for piece in pieces:
                    meter.stop()
                    write_out(piece)
                rows = None
            else:
                rows = read_rows(pieces, self._limit)
        self._show(rows, effort(meter.seconds, answer.summary))

    def _show(self, rows: Rows | None, effort: str) -> None:
        if rows is not None and rows.names:
            if self._vertical or not fits(rows, out.width):
                out.print(vertical(rows), soft_wrap=True, end="")
            else:
                out.print(result_table(rows))
        count = f"{len(rows.values):,} rows, " if rows is not None and rows.names else ""
        out.print(f"{'first ' if rows and rows.more else ''}{count}{effort}", style="dim", highlight=False)
        if rows and rows.more:
            out.print(
                "There are more. All of them: apex warehouse query 'SQL' > FILE, or --rows 0 for this shell.",
                style="yellow", highlight=False, soft_wrap=True,
            )  # fmt: skip


def _enter_runs_whole_statements() -> KeyBindings:
    bindings = KeyBindings()
    whole = Condition(lambda: is_whole(get_app().current_buffer.text))

    @bindings.add("enter", filter=whole & ~completion_is_selected & ~is_searching)
    def run(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return bindings


@click.command(
    "shell",
    epilog="""\b
Examples:
  apex warehouse shell
  apex warehouse shell --rows 100 --read-only
  APEX_CLICKHOUSE_URL=https://me:secret@ch.example:8443 apex warehouse shell
""",
)
@click.option("--rows", type=click.IntRange(0), default=DEFAULT_ROWS, show_default=True,
              help="Show this many rows of a result; 0 for all.")  # fmt: skip
@connection_options
@click.pass_obj
def shell(settings: Settings, rows: int, user: str | None, read_only: bool) -> None:
    """Ask the warehouse from a prompt with history, completion and tables.

    Statements end with `;`, \\? lists commands, Ctrl-C cancels what runs, Ctrl-D leaves. When standard input
    is no terminal, its SQL is run as by `apex warehouse query`.
    """
    origin = "apex warehouse shell"
    with connected(settings, user=user, read_only=read_only, origin=origin) as server:
        if not sys.stdin.isatty():
            run_script(ScriptRun(server, InsertData(None, piped=False)), sys.stdin.buffer)
        elif not sys.stdout.isatty():
            raise click.UsageError("the shell needs a terminal to write to; use `apex warehouse query`")
        else:
            Shell(server, settings.home_path / "warehouse.history", rows).run()
