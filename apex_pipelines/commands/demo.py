"""`apex demo`: runs the main job and prints what happened and where to look."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from apex_pipelines.commands.console import err, out
from apex_pipelines.demo import DemoPlan, DemoResult, run_demo, settled_plan
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.platform.logging import configure_logging
from apex_pipelines.settings import Settings


@click.command(
    epilog="""\b
Examples:
  apex demo
  apex demo --customers 100 --days 90
  apex demo --data access.log
"""
)
@click.option("--customers", type=click.IntRange(0), help="Simulated customers [500].")
@click.option("--days", type=click.IntRange(1, 720), help="Days of their lives [180].")
@click.option("--seed", type=int, help="Seed of their lives [42].")
@click.option("--as-of", type=click.DateTime(["%Y-%m-%d"]), help="Day on which the chain runs [today, UTC].")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="A file to import; repeatable.")
@click.option("--progress", is_flag=True, help="Print stages as lines even with --json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def demo(
    settings: Settings,
    customers: int | None,
    days: int | None,
    seed: int | None,
    as_of: datetime | None,
    data: tuple[Path, ...],
    progress: bool,
    as_json: bool,
) -> None:
    """Run the whole chain on simulated customers (and your files), from empty folders to mails.

    Running it again continues or repeats the same demo: nothing is counted or mailed twice.
    """
    if settings.log_level == "INFO":
        # The demo tells its own story; the processes' logs are in files.
        configure_logging("WARNING", settings.log_format)
    today = as_of.date() if as_of else clock_from_setting(settings.clock).now().date()
    wanted = DemoPlan(
        as_of=today,
        customers=500 if customers is None else customers,
        days=180 if days is None else days,
        seed=42 if seed is None else seed,
    )
    given = {"customers": customers, "days": days, "seed": seed, "as_of": as_of}
    named = [name for name, value in given.items() if value is not None]
    plan = settled_plan(settings, wanted, named=named)
    with _announcer(quiet=as_json and not progress) as announce:
        result = run_demo(settings, plan, list(data), announce)
    if as_json:
        click.echo(json.dumps(result.as_dict(), default=str, indent=2))
    else:
        _print(settings, result)
    if not result.exact:
        raise click.ClickException("the totals do not agree; see above")


@contextmanager
def _announcer(*, quiet: bool) -> Iterator[Callable[[str, str], None]]:
    """Shows the stage under way with a spinner on a terminal, one line a stage elsewhere."""
    began = time.monotonic()
    current = ""

    def plain(stage: str, _line: str) -> None:
        nonlocal current
        if stage != current and not quiet:
            current = stage
            err.print(f"[{time.monotonic() - began:5.0f} s] {stage}", highlight=False)

    if quiet or not err.is_terminal:
        yield plain
        return
    with Live(console=err, transient=True, refresh_per_second=8) as live:
        yield lambda stage, line: live.update(
            Spinner("dots", text=f"{time.monotonic() - began:4.0f} s  {stage}  {line}")
        )


def _print(settings: Settings, result: DemoResult) -> None:
    for title, rows in _tables(result):
        table = Table(title=title, title_justify="left", show_header=False, min_width=72)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        for name, value in rows:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
        out.print(table)
    if result.closing.months:
        out.print(_closing_table(result))
    for difference in result.differences:
        out.print(f"[red]DIFFERS[/] {difference}")
    for found in result.closing.differences:
        out.print(
            f"[red]DIFFERS[/] {found.customer_name}, {found.metric_type}, period from "
            f"{found.period_start:%Y-%m-%d}: {found.cause}"
        )
    warehouse = f"{settings.warehouse_host}:{settings.warehouse_port}"
    out.print("[bold]Where to look[/]")
    out.print(f"  mails          {settings.outbox_dir / 'index.html'}", soft_wrap=True)
    out.print(f"  asset graph    `make up`, then {settings.dagster_url}/asset-groups", soft_wrap=True)
    out.print(
        f"  marts          `make up`, then ClickHouse's HTTP at {warehouse}, user default,", soft_wrap=True
    )
    out.print(f"                 password in {settings.home_path / 'warehouse.password'}", soft_wrap=True)
    out.print(f"  data and logs  {settings.home_path}", soft_wrap=True)


def _closing_table(result: DemoResult) -> Table:
    """Invoices of the closed months, and whether both sides agree."""
    report = result.closing
    agreed = "no difference" if not report.differences else f"{len(report.differences)} DIFFER"
    table = Table(
        title="Months closed at the offline Stripe", title_justify="left", min_width=72,
        caption=f"{report.meter_events:,} meter events; {report.compared} times counted = ledger = meter = "
        f"invoice was compared: {agreed}",
        caption_justify="left",
    )  # fmt: skip
    table.add_column("customer", overflow="fold")
    for name in ("ended", "price", "overage", "fee", "invoice"):
        table.add_column(name, justify="right")
    table.add_column("is")
    for month in report.months:
        cents = (month.base_cents, month.overage_cents, month.fee_cents, month.total_cents)
        table.add_row(
            f"{month.name} ({month.plan_type})", f"{month.period_end:%d %b}",
            *(f"{amount / 100:,.2f}" for amount in cents), month.status,
        )  # fmt: skip
    return table


def _tables(result: DemoResult) -> Iterator[tuple[str, list[tuple[str, int | str]]]]:
    """Titles and rows of the closing tables."""
    yield "Events", _event_rows(result)
    segments: list[tuple[str, int | str]] = [("customers in all", result.customers), *result.segments.items()]
    yield f"Customers per segment on {result.plan.as_of}", segments
    yield "Churn model", _model_rows(result)
    yield "Mails sent, by type", [*result.mails.items(), ("in all", sum(result.mails.values()))]
    stages: list[tuple[str, int | str]] = [(name, f"{took:.1f} s") for name, took in result.stages.items()]
    stages.append(("in all", f"{sum(result.stages.values()):.1f} s"))
    stages.append(("most memory at once", f"{result.peak_memory_bytes / 1e9:.2f} GB"))
    yield "Time per stage", stages


def _event_rows(result: DemoResult) -> list[tuple[str, int | str]]:
    rows: list[tuple[str, int | str]] = []
    if result.simulated is not None:
        done = result.simulated
        rows.append(("simulated: different events", done.generated))
        rows.append(("simulated: sent, with repeats", done.sent))
        rows.append(("simulated: acknowledged", done.acknowledged))
        rows += [(f"  of them: {kind.replace('_', ' ')}", count) for kind, count in done.repeats.items()]
    for report in result.imported:
        rows.append((f"{report.file.name}: events", report.events))
        rows.append((f"{report.file.name}: acknowledged", report.accepted + report.duplicates))
    agreed = "agree" if result.exact else "DIFFER"
    return [
        *rows,
        ("stored, rows", result.stored_rows),
        ("stored, different events", result.stored_distinct),
        ("counted in the marts", result.counted),
        ("totals per metric and counts", agreed),
    ]


def _model_rows(result: DemoResult) -> list[tuple[str, int | str]]:
    if result.model is None:
        return [("no model serves", "too few customers left; the health score serves instead")]
    rows: list[tuple[str, int | str]] = [("algorithm", str(result.model["algorithm"]))]
    for name, (value, low, high) in result.model["metrics"].items():
        rows.append((name, f"{value:.3f}   [{low:.3f}, {high:.3f}]"))
    return [*rows, ("customers scored", result.scored), ("flagged as likely to leave", result.flagged)]
