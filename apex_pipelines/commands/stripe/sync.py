"""`apex stripe sync`: tell Stripe of use what it was not told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.meter_ledger import LedgerEntry
from apex_pipelines.stripe.meter_rules import NewEntry
from apex_pipelines.stripe.usage_sync import SyncReport, UsageSync

_SHOWN = 50


@click.command(
    epilog="\b\nExamples:\n  apex stripe sync --dry-run\n  apex stripe sync --customer cus_0123…\n",
)
@click.option("--customer", "customer_id", help="Only this customer, with everything that was ever counted.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent; write nothing, call nobody.")
@json_option
@click.pass_obj
def sync(settings: Settings, customer_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Send Stripe the difference between the use that was counted and what it was told.

    Use of ended days and ended parts of days; what dbt has counted, so build the models before. Exits with 1
    when anything could not be settled: it stays in the ledger, and the next sync goes on with it.
    """
    engine = postgres.create_engine(settings)
    client = clickhouse.connect(settings, query_origin="apex stripe sync")
    try:
        usage = UsageSync(
            engine, client, connect(settings), clock_from_setting(settings.clock),
            livemode=is_live(settings), concurrency=settings.stripe_concurrency,
        )  # fmt: skip
        report = usage.plan(customer_id) if dry_run else usage.run(customer_id)
    finally:
        client.close()
        engine.dispose()
    if as_json:
        click.echo(json.dumps(_as_json(report), default=str, indent=2))
    else:
        _print(report, dry_run=dry_run)
    if report.left and not dry_run:
        raise SystemExit(1)


def _print(report: SyncReport, *, dry_run: bool) -> None:
    columns = ["customer", "metric", "slot", "quantity", "state"]
    _table(
        [_planned(entry) for entry in report.planned], columns, "Would be sent" if dry_run else "Differences"
    )
    if report.left:
        columns[-1] = "reason"
        _table([_left(entry) for entry in report.left], columns, "Still pending")
    if report.unlinked:
        _table(
            [{"customer": id_, "slots": slots} for id_, slots in report.unlinked.items()],
            ["customer", "slots"], "Unknown to Stripe, nothing sent: `apex stripe push` makes them known",
        )  # fmt: skip
    if not dry_run:
        out.print(
            f"{report.sent:,} sent, {report.rejected:,} rejected, {len(report.left):,} still pending, "
            f"{report.too_late:,} too late to be metered"
        )


def _table(rows: Sequence[dict[str, Any]], columns: list[str], title: str) -> None:
    show(rows[:_SHOWN], columns, as_json=False, title=title)
    if len(rows) > _SHOWN:
        out.print(f"  ... and {len(rows) - _SHOWN:,} more; --json shows all")


def _planned(entry: NewEntry) -> dict[str, Any]:
    slot = entry.slot
    return {
        "customer": slot.customer_id,
        "metric": slot.metric_type,
        "slot": slot.slot_start.isoformat(),
        "quantity": entry.quantity,
        "identifier": entry.identifier,
        "state": "too late, onto an invoice" if entry.is_too_late else "meter event",
    }


def _left(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "customer": entry.customer_id,
        "metric": entry.metric_type,
        "slot": entry.slot_start.isoformat(),
        "quantity": entry.quantity,
        "identifier": entry.identifier,
        "reason": entry.error or "not tried yet",
    }


def _as_json(report: SyncReport) -> dict[str, Any]:
    return {
        "differences": [_planned(entry) for entry in report.planned],
        "resumed": report.resumed,
        "sent": report.sent,
        "rejected": report.rejected,
        "too_late": report.too_late,
        "quantities": report.quantities,
        "left": [_left(entry) for entry in report.left],
        "unlinked": report.unlinked,
    }
