"""Use on its way to Stripe, and what Stripe's meters make of it."""

from typing import Any

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.keys import NO_KEY, USAGE_SYNC
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.meter_summaries import land_summaries
from apex_pipelines.stripe.usage_sync import SyncReport, UsageSync

EVERYTHING_IS_SETTLED = "everything_is_settled"
_SHOWN = 50


@dg.asset(
    key=USAGE_SYNC,
    deps=[dg.AssetKey(["marts", "metered_usage"])],
    group_name="stripe",
    kinds={"stripe", "postgres"},
    check_specs=[
        dg.AssetCheckSpec(
            EVERYTHING_IS_SETTLED,
            asset=USAGE_SYNC,
            description="Stripe answered to each entry of the ledger.",
        )
    ],
)
def usage_sync(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Ledger of the use that Stripe was told of: the difference to what was counted, sent as meter events."""
    settings = stores.settings
    if settings.stripe_secret_key is None:
        return dg.MaterializeResult(metadata=NO_KEY, check_results=[_settled(SyncReport())])
    with stores.postgres() as engine, stores.clickhouse(context) as warehouse:
        report = UsageSync(
            engine, warehouse, connect(settings), stores.clock,
            livemode=is_live(settings), concurrency=settings.stripe_concurrency,
        ).run()  # fmt: skip
    return dg.MaterializeResult(metadata=_metadata(report), check_results=[_settled(report)])


@dg.asset(
    key=["raw", "stripe_meter_summaries"],
    deps=[usage_sync, dg.AssetKey(["marts", "usage_by_period"])],
    group_name="stripe",
    kinds={"stripe", "clickhouse"},
)
def stripe_meter_summaries(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """What Stripe's meters add up to, for each customer, metric and billing period that may still change."""
    settings = stores.settings
    if settings.stripe_secret_key is None:
        return dg.MaterializeResult(metadata=NO_KEY)
    with stores.postgres() as engine, stores.clickhouse(context) as warehouse:
        landed = land_summaries(
            engine, warehouse, connect(settings), stores.clock,
            livemode=is_live(settings), concurrency=settings.stripe_concurrency,
        )  # fmt: skip
    return dg.MaterializeResult(metadata={"periods_asked": landed})


def _metadata(report: SyncReport) -> dict[str, Any]:
    return {
        "events_sent": report.sent,
        "events_rejected": report.rejected,
        "entries_resumed": report.resumed,
        "too_late_to_be_metered": report.too_late,
        "left_pending": len(report.left),
        "quantity_by_metric": dg.MetadataValue.json(dict(report.quantities)),
        "customers_unknown_to_stripe": dg.MetadataValue.json(sorted(report.unlinked)[:_SHOWN]),
    }


def _settled(report: SyncReport) -> dg.AssetCheckResult:
    left = [f"{entry.identifier}: {entry.error or 'not tried yet'}" for entry in report.left]
    return dg.AssetCheckResult(
        check_name=EVERYTHING_IS_SETTLED,
        passed=not left,
        description=f"{len(left)} entries are pending; the next sync goes on with them" if left else None,
        metadata={"pending": dg.MetadataValue.json(left[:_SHOWN])},
    )
