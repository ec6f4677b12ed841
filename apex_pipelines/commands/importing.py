"""`apex import FILE`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from apex_pipelines.commands.console import err, json_option, out, show
from apex_pipelines.importing.engine import ImportProgress, ImportReport, run_import
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings

LABELS = {"reading": "Reading (bytes)", "sending": "Sending (events)"}


@contextmanager
def progress_bar() -> Iterator[Callable[[ImportProgress], None]]:
    """A bar for each phase of an import, on stderr."""
    columns = (TextColumn("{task.description:18}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(progress: ImportProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(LABELS[progress.phase], total=progress.total)
            bar.update(tasks[progress.phase], completed=progress.done, total=progress.total)

        yield report


@click.command(
    "import",
    epilog="""\b
Examples:
  apex import access.log --historical
  apex import sales.csv --mapping my-columns.toml
  apex import CDNOW_master.txt --mapping cdnow --historical
""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--mapping", help="Built-in mapping or a TOML file; found by content when absent.")
@click.option("--historical", is_flag=True, help="Accept events older than 35 days.")
@click.option(
    "--no-resume", is_flag=True, help="Start over instead of going on where a killed import stopped."
)
@json_option
@click.pass_obj
def import_file(
    settings: Settings, file: Path, mapping: str | None, historical: bool, no_resume: bool, as_json: bool
) -> None:
    """Bring a web-server log, CSV or NDJSON file in through the public API.

    Sending a file twice, or a longer version of it, counts each record once.
    """
    clock = clock_from_setting(settings.clock)
    with progress_bar() as report:
        done = run_import(
            settings, file, mapping, historical, clock=clock, on_progress=report, resume=not no_resume
        )
    if as_json:
        click.echo(json.dumps(asdict(done), default=str, indent=2))
        return
    _print(done)


def _print(done: ImportReport) -> None:
    rows = [
        {"what": "lines", "count": done.lines},
        {"what": "lines that could not be read", "count": done.bad_lines},
        {"what": "customers", "count": done.customers},
        {"what": "events", "count": done.events},
        {"what": "acknowledged", "count": done.accepted},
        {"what": "answered as duplicates", "count": done.duplicates},
        {"what": "rejected", "count": done.rejected},
    ]
    show(
        rows,
        ["what", "count"],
        as_json=False,
        title=f"{done.file.name} ({done.mapping}), {done.seconds:.1f} s",
    )
    if done.rejected_file:
        out.print(f"What was not taken, and why: {done.rejected_file}", soft_wrap=True)
