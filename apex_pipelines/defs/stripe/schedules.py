"""When Stripe's event list is read, in UTC (SPEC: orchestration)."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.assets import KINDS
from apex_pipelines.defs.stripe.keys import NO_KEY

stripe_sweep = dg.define_asset_job(
    "stripe_sweep",
    selection=dg.AssetSelection.keys(*KINDS),
    description="Reads what webhooks from Stripe have missed.",
)


@dg.schedule(
    job=stripe_sweep,
    cron_schedule="40 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    execution_timezone="UTC",
)
def stripe_sweep_hourly(stores: Stores) -> dg.RunRequest | dg.SkipReason:
    """Hourly, once there is an account to read from."""
    if stores.settings.stripe_secret_key is None:
        return dg.SkipReason(NO_KEY["skipped"])
    return dg.RunRequest()
