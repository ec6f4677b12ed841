"""`apex stripe reconcile`: compare what was counted with what Stripe has."""

from __future__ import annotations

from dataclasses import asdict

import click

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.reconciliation import ask_stripe, comparisons

_COLUMNS = [
    "customer", "metric", "period", "counted", "ledger", "meter", "invoice", "cause",
]  # fmt: skip


@click.command(
    epilog="\b\nExamples:\n  apex stripe reconcile\n  apex stripe reconcile --customer cus_0123…\n",
)
@click.option("--customer", "customer_id", help="Only this customer.")
@click.option("--all", "everything", is_flag=True, help="Also what agrees.")
@json_option
@click.pass_obj
def reconcile(settings: Settings, customer_id: str | None, everything: bool, as_json: bool) -> None:
    """Ask Stripe for its meters' sums and invoices, and show what differs from what was counted.

    By customer, metric and billing period, with the likely cause; docs/stripe.md says what to do about each.
    Exits with 1 when somebody must look.
    """
    engine = postgres.create_engine(settings)
    warehouse = clickhouse.connect(settings, query_origin="apex stripe reconcile")
    try:
        ask_stripe(
            engine, warehouse, connect(settings), clock_from_setting(settings.clock),
            livemode=is_live(settings), customer_id=customer_id, concurrency=settings.stripe_concurrency,
        )  # fmt: skip
        found = comparisons(warehouse, customer_id=customer_id, everything=everything)
    finally:
        warehouse.close()
        engine.dispose()
    rows = [
        asdict(each) if as_json
        else {
            "customer": f"{each.customer_name} ({each.customer_id})",
            "metric": each.metric_type,
            "period": f"{each.period_start:%F %T} to {each.period_end:%F %T}",
            "counted": each.counted_quantity,
            "ledger": each.ledger_quantity,
            "meter": each.meter_quantity,
            "invoice": each.invoice_quantity,
            "cause": each.cause,
        }
        for each in found
    ]  # fmt: skip
    show(rows, _COLUMNS, as_json=as_json, title="Counted use and Stripe's")
    differences = sum(each.is_difference for each in found)
    if differences:
        raise SystemExit(1)
    if not as_json:
        out.print("Counted use, the ledger, Stripe's meters and its invoices agree.")
