"""`apex stripe push`: customers and subscriptions to Stripe."""

from __future__ import annotations

from dataclasses import asdict

import click

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe import accounts
from apex_pipelines.stripe.client import connect, is_live


@click.command(epilog="\b\nExamples:\n  apex stripe push\n  apex stripe push --customer cus_0123…\n")
@click.option("--customer", "customer_id", help="Only this customer.")
@json_option
@click.pass_obj
def push(settings: Settings, customer_id: str | None, as_json: bool) -> None:
    """Bring Stripe in line with our customers, subscriptions, plans and cancellations; safe to repeat.

    Exits with 1 when Stripe refuses somebody; the others are done.
    """
    engine = postgres.create_engine(settings)
    try:
        done = accounts.push(
            connect(settings), engine, clock_from_setting(settings.clock).now(),
            livemode=is_live(settings), customer_id=customer_id,
        )  # fmt: skip
    finally:
        engine.dispose()
    changed = [each for each in done if each.outcome != "unchanged"]
    rows = [asdict(each) for each in (done if as_json else changed)]
    columns = ["customer_id", "stripe_customer_id", "stripe_subscription_id", "outcome", "error"]
    show(rows, columns, as_json=as_json, title="Changed at Stripe")
    if not as_json:
        out.print(f"{len(done) - len(changed):,} unchanged")
    if any(each.error for each in done):
        raise SystemExit(1)
