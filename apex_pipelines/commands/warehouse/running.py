"""Running a script: data in, results to standard output, progress and effort to standard error.

Belongs here: what `query` and a shell without a terminal do. Does not belong here: HTTP (`client`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import click
from rich.filesize import decimal

from apex_pipelines.commands.warehouse.client import (
    Warehouse,
)
from apex_pipelines.commands.warehouse.script import DATA_BYTES, Script, Statement


class ReaderGone(Exception):
    """Whoever read our output, such as `head`, has what it wanted."""


class Meter:
    """Seconds and bytes on stderr, while something takes longer than a second.

    Parameters
    ----------
    shown : bool
        Whether to show anything.
    total : int or None
        Bytes to come, when that is known.
    """

    def __init__(self, *, shown: bool, total: int | None = None) -> None:
        self._started = time.monotonic()
        self._total = total
        self._bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True) if shown else None

    def __enter__(self) -> Meter:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def stop(self) -> None:
        """Show nothing more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def count(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, counted."""
        for piece in pieces:
            self._bytes += len(piece)
            yield piece

    def _draw(self) -> None:
        # A log wants lines, and few; a terminal wants one that changes.
        live = sys.stderr.isatty()
        wait = 1.0
        while not self._stopped.wait(wait):
            wait = 0.2 if live else 5.0
            click.echo(f"\r{self._text()}\x1b[K" if live else self._text(), err=True, nl=not live)
        if live and wait < 1:
            click.echo("\r\x1b[K", err=True, nl=False)

    def _text(self) -> str:
        total = f" of {decimal(self._total)} ({self._bytes / self._total:.0%})" if self._total else ""
        return f"{self.seconds:.0f} s, {decimal(self._bytes)}{total}"


class InsertData:
    """Data for the inserts of a script that bring none: a file's, or what is piped in. It can be had once.

    Parameters
    ----------
    path : Path or None
        The file; None for standard input.
    piped : bool
        Whether standard input is free for it.
    """

    def __init__(self, path: Path | None, *, piped: bool) -> None:
        self._path = path
        self._piped = piped
        self.taken = False

    @property
    def size(self) -> int | None:
        """In bytes, when it is known."""
        return self._path.stat().st_size if self._path and self._path.is_file() else None

    def take(self) -> Iterator[bytes]:
        """The data in pieces.

        Raises
        ------
        click.ClickException
            When there is none, not a byte of it, or it has been taken.
        """
        if self.taken or (self._path is None and (not self._piped or sys.stdin.isatty())):
            raise click.ClickException("there is no data for this INSERT: pipe it in, or name it with --data")
        self.taken = True
        pieces = self._read()
        first = next(pieces, None)
        if first is None:
            raise click.ClickException(f"{self._path or 'standard input'} has no data for this INSERT")
        return chain((first,), pieces)

    def _read(self) -> Iterator[bytes]:
        with self._path.open("rb") if self._path else sys.stdin.buffer as file:
            yield from iter(lambda: file.read(DATA_BYTES), b"")


@dataclass(frozen=True)
class ScriptRun:
    """How a script is run: its statements one after the other, results to standard output.

    Attributes
    ----------
    format_name : str or None
        Format of results that name none; None for one that suits standard output.
    progress : bool or None
        Whether to show progress; None for when a person sees it.
    timing : bool
        Whether to say how long each statement took.
    """

    warehouse: Warehouse
    data: InsertData
    format_name: str | None = None
    progress: bool | None = None
    timing: bool = False

    def run(self, script: Script) -> None:
        """Run to the end or to the first error.

        Raises
        ------
        click.ClickException
            For the first error, with the line of its statement when there are several; for data that no
            statement took; for a script without statements.
        """
        session = {"session_id": str(uuid.uuid4())}
        alone, number = False, 0
        for number, statement in enumerate(script, 1):
            alone = number == 1 and statement.last
            # What one statement sets, the next one finds.
            held = {} if alone else session | ({"close_session": "1"} if statement.last else {})
            try:
                self._run_one(statement, held)
            except click.ClickException as error:
                if alone:
                    raise
                raise click.ClickException(
                    f"statement {number}, line {statement.line}: {error.message}"
                ) from error
        if not number:
            raise click.ClickException("there is no statement to run")
        if self.data.size is not None and not self.data.taken:
            raise click.ClickException(
                "no INSERT took the data of --data: it needs one such as INSERT INTO t FORMAT CSV"
            )

    def _run_one(self, statement: Statement, session: Mapping[str, str]) -> None:
        data = self.data.take() if statement.needs_data else statement.data or ()
        total = self.data.size if statement.needs_data else None
        seen = sys.stdout.isatty()
        shown = sys.stderr.isatty() if self.progress is None else self.progress
        format_name = self.format_name or ("PrettyCompact" if seen else "TabSeparated")
        with (
            Meter(shown=shown, total=total) as meter,
            self.warehouse.run(
                statement.text, data=meter.count(data), format_name=format_name, session=session
            ) as answer,
        ):
            for piece in meter.count(answer.pieces()):
                if piece and seen:
                    meter.stop()
                write_out(piece)
        if self.timing:
            click.echo(effort(meter.seconds, answer.summary), err=True)


def write_out(piece: bytes) -> None:
    try:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def effort(seconds: float, summary: Mapping[str, int]) -> str:
    """Seconds, and rows read and written as far as they are known."""
    parts = [f"{seconds:.3f} s"]
    if "read_rows" in summary:
        parts.append(f"{summary['read_rows']:,} rows read ({decimal(summary.get('read_bytes', 0))})")
    if summary.get("written_rows"):
        parts.append(f"{summary['written_rows']:,} rows written")
    return ", ".join(parts)


def run_script(run: ScriptRun, source: IO[bytes]) -> None:
    try:
        run.run(Script(source))
    except ReaderGone:
        # What is still buffered must not complain again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
