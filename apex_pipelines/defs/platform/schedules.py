"""When the jobs run, in UTC (SPEC: orchestration)."""

import dagster as dg

from apex_pipelines.defs.platform.jobs import churn_training, daily_chain, usage_limits

RUNNING = dg.DefaultScheduleStatus.RUNNING

usage_limits_hourly = dg.ScheduleDefinition(
    job=usage_limits, cron_schedule="20 * * * *", default_status=RUNNING, execution_timezone="UTC"
)
churn_training_weekly = dg.ScheduleDefinition(
    job=churn_training, cron_schedule="0 6 * * 1", default_status=RUNNING, execution_timezone="UTC"
)
daily_chain_at_8 = dg.ScheduleDefinition(
    job=daily_chain, cron_schedule="0 8 * * *", default_status=RUNNING, execution_timezone="UTC"
)
