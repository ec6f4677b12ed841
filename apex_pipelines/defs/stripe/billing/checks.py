"""Whether Stripe bills what is due."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.stripe.reconciliation import BilledLine, billed_lines

_SHOWN = 50


@dg.asset_check(
    asset=["marts", "stripe_invoice_reconciliation"],
    description="What is due, what Stripe charges and our items on its invoices agree for each line.",
)
def what_is_due_is_billed(context: dg.AssetCheckExecutionContext, stores: Stores) -> dg.AssetCheckResult:
    """Fails with the names of the customers for whom an amount differs, and the likely cause."""
    with stores.clickhouse(context) as warehouse:
        found = billed_lines(warehouse)
    differences = [each for each in found if each.is_difference]
    names = sorted({each.customer_name or each.customer_id for each in differences})
    return dg.AssetCheckResult(
        passed=not differences,
        description=f"Amounts differ from Stripe's for {', '.join(names[:_SHOWN])}" if names else None,
        metadata={
            "differences": len(differences),
            "customers": dg.MetadataValue.json(names),
            "table": dg.MetadataValue.md(_table(found[:_SHOWN])),
        },
    )


def _table(rows: list[BilledLine]) -> str:
    lines = [
        f"| {each.customer_name} ({each.customer_id}) | {each.line_type} {each.metric_type} "
        f"| {each.period_start:%F} | {each.due_cents:,} "
        f"| {'' if each.charged_cents is None else f'{each.charged_cents:,}'} | {each.posted_cents:,} "
        f"| {each.invoiced_cents:,} | {each.currency} | {each.cause} |"
        for each in rows
    ]
    head = ["| customer | line | period from | due | charged | posted | on invoices | currency | cause |"]
    return "\n".join([*head, "|---|---|---|---:|---:|---:|---:|---|---|", *lines])
