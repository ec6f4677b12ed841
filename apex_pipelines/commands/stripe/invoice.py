"""`apex stripe invoice`: what use costs, onto Stripe's invoices."""

from __future__ import annotations

from dataclasses import asdict

import click

from apex_pipelines.commands.console import json_option, show
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.invoice_items import post_items


@click.command(epilog="\b\nExamples:\n  apex stripe invoice\n  apex stripe invoice --customer cus_0123…\n")
@click.option("--customer", "customer_id", help="Only this customer.")
@json_option
@click.pass_obj
def invoice(settings: Settings, customer_id: str | None, as_json: bool) -> None:
    """Post overage, fees and adjustments that Stripe's invoices lack, as items; safe to repeat.

    It goes by what dbt has computed and what was read from Stripe, so build the models and sweep before.
    Exits with 1 when Stripe refuses an item; it stays in the ledger, and the next call tries it again.
    """
    engine = postgres.create_engine(settings)
    warehouse = clickhouse.connect(settings, query_origin="apex stripe invoice")
    try:
        done = post_items(
            connect(settings), engine, warehouse, clock_from_setting(settings.clock).now(),
            livemode=is_live(settings), customer_id=customer_id,
        )  # fmt: skip
    finally:
        warehouse.close()
        engine.dispose()
    columns = [
        "customer_id", "line_type", "metric_type", "period_start", "amount_cents", "currency", "invoice_id",
        "error",
    ]  # fmt: skip
    show([asdict(item) for item in done], columns, as_json=as_json, title="Invoice items")
    if any(item.error for item in done):
        raise SystemExit(1)
