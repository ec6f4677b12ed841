"""`apex stripe sweep`."""

from __future__ import annotations

from dataclasses import asdict

import click

from apex_pipelines.commands.console import json_option, show
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.account import read_account
from apex_pipelines.stripe.inbox import drain_inbox
from apex_pipelines.stripe.sweep import sweep as read_events


@click.command("sweep", epilog="\b\nExamples:\n  apex stripe sweep\n  apex stripe sweep --json\n")
@json_option
@click.pass_obj
def sweep(settings: Settings, as_json: bool) -> None:
    """Read Stripe's event list from where it was left, and take in what webhooks have missed."""
    clock = clock_from_setting(settings.clock)
    with read_account(settings, clock, query_origin="apex stripe sweep") as account:
        found = read_events(account.engine, account.reader)
        report = drain_inbox(account.engine, account.reader, account.changes)
    row = {**asdict(found), **asdict(report)}
    columns = ["events", "missed", "done", "ignored", "retrying", "failed"]
    show([row], columns, as_json=as_json, title="Stripe's events")
    if report.failures:
        raise click.ClickException("; ".join(report.failures))
