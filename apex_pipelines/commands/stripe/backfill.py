"""`apex stripe backfill`."""

from __future__ import annotations

import click
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from apex_pipelines.commands.console import err, json_option, out, show
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.account import read_account
from apex_pipelines.stripe.backfill import backfill as read_everything
from apex_pipelines.stripe.object_types import OBJECT_TYPES


@click.command(
    "backfill",
    epilog="\b\nExamples:\n  apex stripe backfill\n  apex stripe backfill --only invoice --only charge\n"
    "  apex stripe backfill --again\n",
)
@click.option("--only", "types", type=click.Choice(list(OBJECT_TYPES)), multiple=True, help="One type.")
@click.option("--again", is_flag=True, help="Also what was read to the end before.")
@json_option
@click.pass_obj
def backfill(settings: Settings, types: tuple[str, ...], again: bool, as_json: bool) -> None:
    """Read everything from Stripe into the warehouse, and mirror it; goes on where it was stopped."""
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} objects"),
        TimeElapsedColumn(),
    )
    clock = clock_from_setting(settings.clock)
    with (
        read_account(settings, clock, query_origin="apex stripe backfill") as account,
        Progress(*columns, console=err) as bar,
    ):
        tasks: dict[str, TaskID] = {}

        def progress(name: str, objects: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=None)
            bar.update(tasks[name], completed=objects)

        report = read_everything(
            account.engine,
            account.client,
            account.reader,
            types=types or None,
            again=again,
            progress=progress,
        )
    rows = [{"type": name, "objects": count} for name, count in report.objects.items()]
    show(rows, ["type", "objects"], as_json=as_json, title="Read from Stripe")
    if not rows and not as_json:
        out.print("all of it was read before; `--again` reads it anew")
    if report.problems:
        raise click.ClickException("not mirrored: " + "; ".join(report.problems))
