"""`apex stripe reconcile`: compare what was counted with what Stripe has."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.reconciliation import BilledLine, Comparison, ask_stripe, billed_lines, comparisons

_USE = ["customer", "metric", "period", "counted", "ledger", "meter", "invoice", "cause"]
_MONEY = ["customer", "line", "period", "due", "charged", "posted", "invoiced", "cause"]


@click.command(
    epilog="\b\nExamples:\n  apex stripe reconcile\n  apex stripe reconcile --customer cus_0123…\n",
)
@click.option("--customer", "customer_id", help="Only this customer.")
@click.option("--all", "everything", is_flag=True, help="Also what agrees.")
@json_option
@click.pass_obj
def reconcile(settings: Settings, customer_id: str | None, everything: bool, as_json: bool) -> None:
    """Ask Stripe for its meters' sums and invoices, and show what differs from what was counted and is due.

    Use by customer, metric and billing period, money by invoice line, in minor units; each with the likely
    cause. docs/stripe.md says what to do about it.
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
        lines = billed_lines(warehouse, customer_id=customer_id, everything=everything)
    finally:
        warehouse.close()
        engine.dispose()
    if as_json:
        sides = {"use": [asdict(each) for each in found], "money": [asdict(each) for each in lines]}
        click.echo(json.dumps(sides, default=str, indent=2))
    else:
        show([_use(each) for each in found], _USE, as_json=False, title="Counted use and Stripe's")
        show(
            [_money(each) for each in lines], _MONEY, as_json=False, title="What is due and Stripe's invoices"
        )
    if any(each.is_difference for each in found) or any(each.is_difference for each in lines):
        raise SystemExit(1)
    if not as_json:
        out.print("Counted use, the ledgers, Stripe's meters and its invoices agree.")


def _use(each: Comparison) -> dict[str, Any]:
    return {
        "customer": f"{each.customer_name} ({each.customer_id})",
        "metric": each.metric_type,
        "period": _period(each),
        "counted": each.counted_quantity,
        "ledger": each.ledger_quantity,
        "meter": each.meter_quantity,
        "invoice": each.invoice_quantity,
        "cause": each.cause,
    }


def _money(each: BilledLine) -> dict[str, Any]:
    return {
        "customer": f"{each.customer_name} ({each.customer_id})",
        "line": f"{each.line_type} {each.metric_type}".rstrip(),
        "period": _period(each),
        "due": each.due_cents,
        "charged": each.charged_cents,
        "posted": each.posted_cents,
        "invoiced": each.invoiced_cents,
        "cause": each.cause,
    }


def _period(each: Comparison | BilledLine) -> str:
    return f"{each.period_start:%F %T} to {each.period_end:%F %T}"
