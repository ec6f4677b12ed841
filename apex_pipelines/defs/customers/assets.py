"""Copies of the operational tables in the warehouse, one asset a table."""

from __future__ import annotations

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.platform.snapshot import copy_table

# Table to what a reader should know of it. The mail log is copied after the day's mails (see messaging).
SNAPSHOTS = {
    "customers": "Who our customers are, as the operational store knows them now.",
    "subscriptions": "Every subscription ever opened, with its plan, status, period and end.",
    "payments": "Every attempt to collect an invoice, with its outcome.",
}


def build_snapshot(table: str, description: str) -> dg.AssetsDefinition:
    """The asset that copies one operational table whole and swaps the copy in."""

    @dg.asset(
        key=["raw", table],
        group_name="customers" if table != "payments" else "billing",
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
    return dg.Definitions(assets=[build_snapshot(table, text) for table, text in SNAPSHOTS.items()])
