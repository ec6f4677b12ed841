"""Copies of the operational tables in the warehouse, one asset a table."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.platform.snapshot import copy_table

# Table to (group, what must be right before, what a reader should know of it). The mail log is copied after
# the day's mails (see messaging).
SNAPSHOTS = {
    "customers": ("customers", [], "Who our customers are, as the operational store knows them now."),
    "subscriptions": (
        "billing",
        [dg.AssetKey(["billing", "billing_periods"])],
        "Every subscription ever opened, with its plan, status, period and end.",
    ),
    "subscription_changes": (
        "billing",
        [dg.AssetKey(["billing", "billing_periods"])],
        "The terms of each subscription from an instant on, one row a change.",
    ),
    "payments": ("billing", [], "Every attempt to collect an invoice, with its outcome."),
}


def build_snapshot(table: str, group: str, deps: list[dg.AssetKey], description: str) -> dg.AssetsDefinition:
    """The asset that copies one operational table whole and swaps the copy in."""

    @dg.asset(
        key=["raw", table],
        deps=deps,
        group_name=group,
        description=description,
        kinds={"postgres", "clickhouse"},
    )
    def snapshot(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with stores.postgres() as engine, stores.clickhouse(context) as client:
            rows = copy_table(engine, client, table, stores.now)
        return dg.MaterializeResult(metadata={"dagster/row_count": rows})

    return snapshot


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[build_snapshot(table, *parts) for table, parts in SNAPSHOTS.items()])
