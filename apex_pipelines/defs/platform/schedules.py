"""When the jobs run, in UTC (SPEC: orchestration)."""

import dagster as dg

from apex_pipelines.billing.store import periods_due
from apex_pipelines.defs.platform.jobs import churn_training, daily_chain, usage_limits
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.metering.landing import uncounted_since
from apex_pipelines.platform import clickhouse

RUNNING = dg.DefaultScheduleStatus.RUNNING


@dg.schedule(job=usage_limits, cron_schedule="20 * * * *", default_status=RUNNING, execution_timezone="UTC")
def usage_limits_hourly(stores: Stores) -> dg.RunRequest | dg.SkipReason:
    """Hourly, when something has landed or a billing period has ended since the last run."""
    client = clickhouse.connect(stores.settings, query_origin="schedule:usage_limits")
    with stores.postgres() as engine, engine.connect() as connection:
        due = uncounted_since(client) or periods_due(connection, stores.now)
    client.close()
    return dg.RunRequest() if due else dg.SkipReason("nothing has landed since the last count")


churn_training_weekly = dg.ScheduleDefinition(
    name="churn_training_weekly",
    job=churn_training,
    cron_schedule="0 6 * * 1",
    default_status=RUNNING,
    execution_timezone="UTC",
)
daily_chain_at_8 = dg.ScheduleDefinition(
    name="daily_chain_at_8",
    job=daily_chain,
    cron_schedule="0 8 * * *",
    default_status=RUNNING,
    execution_timezone="UTC",
)
