"""`apex warehouse shell` as a person at a terminal meets it, through a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from apex_pipelines.commands.warehouse.names import Names
from apex_pipelines.commands.warehouse.results import Rows, fits, read_rows, result_table, vertical
from apex_pipelines.commands.warehouse.shell import is_whole
from apex_pipelines.platform import clickhouse
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port

APEX = str(Path(sys.executable).with_name("apex"))
# The child makes the terminal its own, so that Ctrl-C reaches it as a signal.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][A-Z0-9]?|\x1b\][^\x07]*\x07|\r")
DONE = r"\d\.\d{3} s"


class Terminal:
    """A program in a terminal of 120 columns: what is typed, and what is shown after that."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        self._end, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        env = child_environment(settings, TERM="xterm", COLUMNS="120", LINES="50", PROMPT_TOOLKIT_NO_CPR="1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, APEX, "warehouse", "shell", *arguments],
            stdin=inside, stdout=inside, stderr=inside, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self._shown = ""

    def expect(self, pattern: str, seconds: float = 8) -> str:
        """Wait until `pattern` is shown; what was shown up to its end, which is then forgotten."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, _CODES.sub("", self._shown))) is None:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} was not shown within {seconds} s, but {_CODES.sub('', self._shown)!r}"
            try:
                self._shown += os.read(self._end, 1 << 16).decode("utf-8", "replace")
            except OSError as error:
                raise AssertionError(f"ended without {pattern!r}: {self._shown!r}") from error
        plain = _CODES.sub("", self._shown)
        self._shown = plain[found.end() :]
        return plain[: found.end()]

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def run(self, text: str, seconds: float = 8) -> str:
        """Type a statement and Enter; what is shown until the next prompt."""
        self.type(f"{text}\r")
        return self.expect(rf"(?s){DONE}.*?\w+>", seconds)

    def leave(self) -> int:
        """Press Ctrl-D until it is seen: between two prompts the terminal itself takes it."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.type(CTRL_D)
            # What is shown last must be read, or the program can't end.
            with pytest.raises(AssertionError) as waited:
                self.expect("never shown", 0.5)
            if "ended without" in str(waited.value):
                break
        return self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)


@pytest.fixture
def served(settings: Settings, _warehouse: Settings) -> Settings:
    """Settings that point at the warehouse."""
    settings.clickhouse_url = clickhouse.clickhouse_url(_warehouse)
    return settings


@pytest.fixture
def shell(served: Settings) -> Iterator[Callable[..., Terminal]]:
    """Starts shells, and waits for their prompt."""
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(served, *arguments))
        started[-1].expect("default>")
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


# -- at the terminal -------------------------------------------------------------------------------


def test_statements_of_one_and_of_several_lines_and_errors_in_between(shell: Callable[..., Terminal]) -> None:
    terminal = shell()
    shown = terminal.run("select 6 * 7 as answer, null as nothing;")
    assert re.search(r"answer.*nothing(?s:.*)42.*NULL", shown)
    assert "1 rows, 0." in shown
    terminal.type("select\r")
    terminal.expect("->")
    terminal.type("  1000 +\r")
    assert "2000" in terminal.run("1000;")
    terminal.type("select * from nowhere;\r")
    assert "Code: 60. DB::Exception" in terminal.expect(r"\(UNKNOWN_TABLE\)")
    terminal.expect("default>")
    assert "5000" in terminal.run("select 4999 + 1;")
    assert terminal.leave() == 0


@pytest.mark.measures
def test_ctrl_c_cancels_what_runs_and_the_shell_goes_on(shell: Callable[..., Terminal]) -> None:
    terminal = shell()
    terminal.run("set max_threads = 3;")
    terminal.type("select sleep(3) from numbers(10) settings max_block_size = 1;\r")
    time.sleep(1.5)
    started = time.monotonic()
    terminal.type(CTRL_C)
    terminal.expect("Cancelled")
    terminal.expect("default>")
    assert time.monotonic() - started < 2
    assert "max_threads is 3" in terminal.run(
        "select concat('max_threads is ', getSetting('max_threads')::String);"
    )
    terminal.type("select half of a statement")
    terminal.expect("half of a statement")
    terminal.type(CTRL_C)
    terminal.expect("default>")
    assert terminal.leave() == 0


def test_what_was_run_is_kept_for_its_owner_and_comes_back(
    served: Settings, shell: Callable[..., Terminal]
) -> None:
    first = shell()
    first.run("select 20 + 3;")
    assert first.leave() == 0
    history = served.home_path / "warehouse.history"
    assert "select 20 + 3;" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    second = shell()
    second.type(UP)
    second.expect(r"select 20 \+ 3")
    assert "23" in second.run("")


def test_commands_show_databases_tables_and_columns_and_use_holds(shell: Callable[..., Terminal]) -> None:
    terminal = shell()
    name = f"shell_{uuid.uuid4().hex[:8]}"
    terminal.run(
        f"create database {name}; create table {name}.things (size UInt8, made DateTime) engine = Memory;"
    )
    assert name in terminal.run("\\l")
    assert re.search(rf"{name}.*things.*Memory", terminal.run("\\d"))
    assert re.search(r"size.*UInt8(?s:.*)made.*DateTime", terminal.run(f"\\d {name}.things"))
    terminal.type(f"use {name};\r")
    terminal.expect(f"{name}>")
    terminal.run("insert into things format CSV 7,2026-01-02 03:04:05;")
    assert re.search(r"7 .*2026-01-02 03:04:05", terminal.run("select * from things;"))
    terminal.type("\\x\r")
    terminal.expect("one below the other")
    assert re.search(r"Row 1\s+size  7\s+made  2026", terminal.run("select * from things;"))
    terminal.type("\\?\r")
    terminal.expect("Ctrl-C cancels what runs")
    terminal.type("\\nothing\r")
    terminal.expect(r"there is no command \\nothing")
    terminal.run(f"drop database {name};")


def test_more_rows_than_are_shown_are_told(shell: Callable[..., Terminal]) -> None:
    terminal = shell("--rows", "5")
    shown = terminal.run("select number + 100 as n from numbers(1000000000);")
    assert "104" in shown
    assert "105" not in shown
    assert "first 5 rows" in shown
    assert "apex warehouse query" in shown
    assert "[1,2,3]" in terminal.run("select [1,2,3] as list format JSONCompactEachRow;")


def test_names_are_completed_by_tab(shell: Callable[..., Terminal]) -> None:
    terminal = shell()
    terminal.type("select count() from system.contrib\t")
    terminal.expect("contributors")


def test_a_server_that_is_not_there_is_told_at_once(settings: Settings) -> None:
    settings.warehouse_port = free_port()
    terminal = Terminal(settings)
    terminal.expect("Start it with `apex up` or `apex warehouse serve`")
    assert terminal.process.wait(10) == 1
    terminal.close()


def test_without_a_terminal_it_runs_what_is_piped_in(served: Settings) -> None:
    env = child_environment(served)
    done = subprocess.run(
        [APEX, "warehouse", "shell"], input=b"use system; select currentDatabase();\nselect * from nowhere",
        env=env, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"system\n")
    assert b"statement 3, line 2: Code: 60." in done.stderr
    helped = subprocess.run([APEX, "warehouse", "shell", "--help"], env=env, capture_output=True, timeout=60)
    assert b"Examples:" in helped.stdout


# -- its parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("select 1;", True),
        ("select 1; -- done", True),
        ("select 1", False),
        ("select ';", False),
        ("select 1 -- ;", False),
        ("\\d", True),
        ("", True),
        ("exit", True),
    ],
)
def test_enter_runs_whole_statements(text: str, whole: bool) -> None:
    assert is_whole(text) is whole


def test_rows_are_read_as_they_come_up_to_the_limit() -> None:
    answer = b"a\tb\nInt8\tNullable(String)\n1\t\\N\n2\tit\\'s\\n\\\\ \\t\x1b[31m\n3\tx\n"
    pieces = (answer[at : at + 5] for at in range(0, len(answer), 5))
    rows = read_rows(pieces, 2)
    assert (rows.names, rows.types) == (["a", "b"], ["Int8", "Nullable(String)"])
    assert rows.values == [["1", None], ["2", "it's\n\\ \t␛[31m"]]
    assert rows.more
    assert not read_rows(iter([answer]), 3).more
    assert read_rows(iter([answer]), 0).values[2] == ["3", "x"]
    assert read_rows(iter([b""]), 3) == Rows([], [], [], more=False)


def test_rows_that_make_no_readable_table_are_shown_vertically() -> None:
    wide = Rows([f"column_{number}" for number in range(20)], ["String"] * 20, [["value"] * 20], more=False)
    narrow = Rows(["a", "b"], ["Int8", "String"], [["1", "x" * 500]], more=False)
    assert fits(narrow, 80)
    assert not fits(wide, 80)
    assert vertical(wide).plain.splitlines()[1] == "  column_0   value"
    console = Console(file=StringIO(), width=80)
    console.print(result_table(Rows(["n"], ["UInt64"], [["[b]1"]], more=False)))
    assert "[b]1" in console.file.getvalue()  # type: ignore[attr-defined]


class _Known:
    """A server that knows a database, a table and a column."""

    def value(self, _sql: bytes, **_how: object) -> str:
        rows = (
            "database\t\t\traw",
            "table\traw\t\tevents",
            "column\traw\tevents\tevent_id",
            "function\t\t\tever",
        )
        return "\n".join(rows)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("select * from ", ["events", "raw"]),
        ("select * from raw.e", ["events"]),
        ("select events.", ["event_id"]),
        ("insert into ev", ["events"]),
        ("select * from events where ev", ["event_id", "ever", "events"]),
        ("SEL", ["SELECT"]),
        ("select 1 ", []),
    ],
)
def test_completion_offers_what_can_stand_there(typed: str, offered: list[str]) -> None:
    names = Names(_Known(), database="raw")  # type: ignore[arg-type]
    assert [name for name, _ in names.matching(typed)] == offered
