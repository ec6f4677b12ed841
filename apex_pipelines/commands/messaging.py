"""`apex email ...`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import sqlalchemy as sa

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.messaging import operations
from apex_pipelines.messaging.operations import QueueState
from apex_pipelines.messaging.queue import create_provider
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings


def _engine(settings: Settings) -> sa.Engine:
    return postgres.create_engine(settings, poolclass=sa.NullPool)


@click.group()
def email() -> None:
    """Mails: preview, queue, test, retry."""


@email.command("preview", epilog="\b\nExamples:\n  apex email preview\n  apex email preview welcome\n")
@click.argument("email_type", required=False)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write [APEX_HOME/preview].")
@click.pass_obj
def preview(settings: Settings, email_type: str | None, folder: Path | None) -> None:
    """Render one mail type, or all, with sample data."""
    written = operations.preview(settings, email_type, folder or settings.home_path / "preview")
    for path in written:
        out.print(str(path), soft_wrap=True)


@email.command("queue", epilog="\b\nExamples:\n  apex email queue\n  apex email queue --state failed\n")
@click.option("--state", type=click.Choice([*QueueState, "all"]), default="pending", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
@click.pass_obj
def queue(settings: Settings, state: str, limit: int, as_json: bool) -> None:
    """Show mails of one state: what waits (and why), what was sent, skipped or failed."""
    engine = _engine(settings)
    wanted = None if state == "all" else QueueState(state)
    rows = [asdict(item) for item in operations.list_queue(engine, state=wanted, limit=limit)]
    columns = ["id", "email_type", "customer_id", "state", "attempts", "not_before", "error_message"]
    show(rows, columns, as_json=as_json, title=f"Mails, {state}")
    if not as_json:
        counts = operations.queue_counts(engine)
        out.print(", ".join(f"{count:,} {name.value}" for name, count in counts.items()))


@email.command("send-test", epilog="\b\nExample:\n  apex email send-test welcome me@example.com\n")
@click.argument("email_type")
@click.argument("address")
@click.pass_obj
def send_test(settings: Settings, email_type: str, address: str) -> None:
    """Send one mail type with sample data to an address, now."""
    event_id = operations.send_test(
        _engine(settings),
        create_provider(settings),
        clock_from_setting(settings.clock),
        settings,
        email_type=email_type,
        to=address,
    )
    out.print(f"sent as event {event_id} by the provider {settings.email_provider}")


@email.command("retry", epilog="\b\nExamples:\n  apex email retry 4711\n  apex email retry --failed\n")
@click.argument("event_id", type=int, required=False)
@click.option("--failed", is_flag=True, help="Every mail that rests as failed.")
@click.pass_obj
def retry(settings: Settings, event_id: int | None, failed: bool) -> None:
    """Queue a mail again; the queue sends it within a minute."""
    if failed == (event_id is not None):
        raise click.UsageError("give either the id of a mail (`apex email queue`) or --failed")
    clock = clock_from_setting(settings.clock)
    if event_id is None:
        out.print(f"{operations.retry_failed(_engine(settings), clock):,} mails are queued again")
    else:
        before = operations.retry_event(_engine(settings), event_id, clock)
        out.print(f"mail {event_id} was {before.value} and is queued again")
