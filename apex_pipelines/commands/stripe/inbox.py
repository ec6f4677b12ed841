"""`apex stripe inbox`."""

from __future__ import annotations

from dataclasses import asdict

import click
import sqlalchemy as sa

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.account import read_account
from apex_pipelines.stripe.inbox import drain_inbox, list_waiting, retry_webhooks


@click.command(
    "inbox",
    epilog="\b\nExamples:\n  apex stripe inbox\n  apex stripe inbox --take-in\n"
    "  apex stripe inbox --retry 4711\n  apex stripe inbox --retry-failed\n",
)
@click.option("--take-in", is_flag=True, help="Take in what is due now instead of showing what is there.")
@click.option("--retry", "row_id", type=int, help="Take this event in again, whatever became of it.")
@click.option("--retry-failed", is_flag=True, help="Take in again all that rest as failed.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Events to show.")
@json_option
@click.pass_obj
def inbox(
    settings: Settings, take_in: bool, row_id: int | None, retry_failed: bool, limit: int, as_json: bool
) -> None:
    """Show Stripe's events that wait or rest as failed, and why; or take them in."""
    clock = clock_from_setting(settings.clock)
    engine = postgres.create_engine(settings, poolclass=sa.NullPool)
    if row_id is not None or retry_failed:
        again = retry_webhooks(engine, clock.now(), row_id=row_id)
        if not as_json:
            out.print(f"{again:,} events are taken in again")
    if not (take_in or retry_failed or row_id is not None):
        columns = ["id", "event_type", "received_at", "state", "attempts", "not_before", "error_message"]
        rows = [asdict(row) for row in list_waiting(engine, limit=limit)]
        show(rows, columns, as_json=as_json, title="Stripe's events that are not taken in")
        return
    with read_account(settings, clock, query_origin="apex stripe inbox") as account:
        report = drain_inbox(account.engine, account.reader, account.changes)
    show(
        [asdict(report)], ["done", "ignored", "retrying", "failed"], as_json=as_json, title="Stripe's events"
    )
    if report.failures:
        raise click.ClickException("; ".join(report.failures))
