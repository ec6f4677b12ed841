"""When use goes to Stripe, in UTC (SPEC: orchestration)."""

import dagster as dg

# With all that it stands on, so that what landed until now is counted before.
stripe_usage_sync = dg.define_asset_job(
    "stripe_usage_sync",
    selection=dg.AssetSelection.keys(["marts", "stripe_reconciliation"]).upstream(),
    description="Counts what is new, tells Stripe, and compares both sides.",
)
stripe_usage_sync_daily = dg.ScheduleDefinition(
    name="stripe_usage_sync_daily",
    job=stripe_usage_sync,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    execution_timezone="UTC",
)
