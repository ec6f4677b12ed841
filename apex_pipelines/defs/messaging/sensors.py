"""The mail queue's sensor: looks every minute, launches only when a mail is due."""

import dagster as dg
import sqlalchemy as sa

from apex_pipelines.defs.platform.resources import Stores

EMAILS_SENT = dg.AssetSelection.keys(["messaging", "emails_sent"])

email_queue = dg.define_asset_job(
    "email_queue",
    selection=EMAILS_SENT,
    description="Sends what waits in the mail queue.",
)

# The partial index on what is pending answers this without reading the table. A row that an operator reset by
# hand is due at once, whatever its back-off said.
_DUE = sa.text("""
    select count(*) from events
    where processed_at is null and event_type like 'email.%'
      and (not_before <= :now or (error_message is null and (attempts > 0 or outcome is not null)))
""")


UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(job=email_queue, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def email_queue_sensor(context: dg.SensorEvaluationContext, stores: Stores) -> dg.RunRequest | dg.SkipReason:
    """Launches the queue's job when mails are due; a quiet queue launches nothing."""
    with stores.postgres() as engine, engine.connect() as connection:
        due = connection.scalar(_DUE, {"now": stores.now})
    if not due:
        return dg.SkipReason("no mail is due")
    # No run key: an operator may send the same mail again, and a run that is under way will find what is due.
    if context.instance.get_runs_count(dg.RunsFilter(job_name=email_queue.name, statuses=UNDER_WAY)):
        return dg.SkipReason("the queue's run is under way")
    return dg.RunRequest(tags={"apex/mails_due": str(due)})
