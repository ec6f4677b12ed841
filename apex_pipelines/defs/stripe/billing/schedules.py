"""When Stripe's drafts get what use costs, in UTC."""

from datetime import timedelta

import dagster as dg

from apex_pipelines.billing.store import periods_ended_since
from apex_pipelines.defs.messaging.sensors import UNDER_WAY
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.keys import INVOICE_ITEMS, NO_KEY

# Stripe leaves a draft open for an hour after the period's end: twice an hour, so that one run is in time.
_LOOK_BACK = timedelta(hours=1)

stripe_month_end = dg.define_asset_job(
    "stripe_month_end",
    selection=dg.AssetSelection.keys(INVOICE_ITEMS).upstream(),
    description="Sends the use of periods that have just ended, and puts what it costs onto their drafts.",
)


@dg.schedule(
    job=stripe_month_end,
    cron_schedule="5,35 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    execution_timezone="UTC",
)
def stripe_month_end_twice_an_hour(
    context: dg.ScheduleEvaluationContext, stores: Stores
) -> dg.RunRequest | dg.SkipReason:
    """Launches when a billing period has ended within the last hour, one run at a time."""
    if stores.settings.stripe_secret_key is None:
        return dg.SkipReason(NO_KEY["skipped"])
    with stores.postgres() as engine, engine.connect() as connection:
        ended = periods_ended_since(connection, stores.now - _LOOK_BACK, stores.now)
    if not ended:
        return dg.SkipReason("no billing period has ended within the last hour")
    if context.instance.get_runs_count(dg.RunsFilter(job_name=stripe_month_end.name, statuses=UNDER_WAY)):
        return dg.SkipReason("the run before is under way")
    return dg.RunRequest()
