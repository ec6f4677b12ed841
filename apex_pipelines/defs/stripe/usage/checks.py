"""Whether what was counted is what Stripe bills."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.stripe.reconciliation import Comparison, comparisons

_SHOWN = 50


@dg.asset_check(
    asset=["marts", "stripe_reconciliation"],
    description="Counted use, the ledger, Stripe's meters and its invoices agree for each customer.",
)
def counted_use_is_billed(context: dg.AssetCheckExecutionContext, stores: Stores) -> dg.AssetCheckResult:
    """Fails with the names of the customers for whom something differs, and the likely cause."""
    with stores.clickhouse(context) as warehouse:
        found = comparisons(warehouse)
    differences = [each for each in found if each.is_difference]
    names = sorted({each.customer_name or each.customer_id for each in differences})
    return dg.AssetCheckResult(
        passed=not differences,
        description=f"Use differs from Stripe's for {', '.join(names[:_SHOWN])}" if names else None,
        metadata={
            "differences": len(differences),
            "customers": dg.MetadataValue.json(names),
            "explained": len(found) - len(differences),
            "table": dg.MetadataValue.md(_table(found[:_SHOWN])),
        },
    )


def _table(rows: list[Comparison]) -> str:
    lines = [
        f"| {each.customer_name} ({each.customer_id}) | {each.metric_type} | {each.period_start:%F} "
        f"| {each.counted_quantity:,} | {each.ledger_quantity:,} | {each.meter_quantity:,} "
        f"| {'' if each.invoice_quantity is None else f'{each.invoice_quantity:,}'} | {each.cause} |"
        for each in rows
    ]
    head = ["| customer | metric | period from | counted | ledger | meter | invoice | cause |"]
    return "\n".join([*head, "|---|---|---|---:|---:|---:|---:|---|", *lines])
