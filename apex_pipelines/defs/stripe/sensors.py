"""The sensor of Stripe's webhooks: looks every minute, launches only when an event waits."""

import dagster as dg

from apex_pipelines.defs.messaging.sensors import UNDER_WAY
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.assets import WEBHOOKS_TAKEN_IN
from apex_pipelines.defs.stripe.keys import NO_KEY
from apex_pipelines.stripe.inbox import count_due

stripe_webhooks = dg.define_asset_job(
    "stripe_webhooks",
    selection=dg.AssetSelection.keys(WEBHOOKS_TAKEN_IN),
    description="Takes in what Stripe's webhooks brought.",
)


@dg.sensor(job=stripe_webhooks, minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def stripe_webhook_sensor(
    context: dg.SensorEvaluationContext, stores: Stores
) -> dg.RunRequest | dg.SkipReason:
    """Launches the inbox's job when events of Stripe wait; a quiet inbox launches nothing."""
    if stores.settings.stripe_secret_key is None:
        return dg.SkipReason(NO_KEY["skipped"])
    with stores.postgres() as engine, engine.connect() as connection:
        due = count_due(connection, stores.now)
    if not due:
        return dg.SkipReason("no event of Stripe waits")
    # A run that is under way will find what waits.
    if context.instance.get_runs_count(dg.RunsFilter(job_name=stripe_webhooks.name, statuses=UNDER_WAY)):
        return dg.SkipReason("the inbox's run is under way")
    return dg.RunRequest(tags={"apex/events_due": str(due)})
