"""Triggers: each reads marts and, in one PostgreSQL transaction, writes ledger rows and queues mails.

All take `(client, engine, as_of_date, clock)`: a warehouse client, the operational database, today's date
(UTC), and the clock whose instant is written down. All can run any number of times, and catch up on missed
days: occurrence keys in the database decide that a cause mails once. One file for each trigger.
"""

from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.at_risk import at_risk_triggers
from apex_pipelines.lifecycle.triggers.churn import churn_triggers
from apex_pipelines.lifecycle.triggers.digest import daily_digest
from apex_pipelines.lifecycle.triggers.onboarding import onboarding_triggers
from apex_pipelines.lifecycle.triggers.queueing import Trigger
from apex_pipelines.lifecycle.triggers.segments import segment_triggers
from apex_pipelines.lifecycle.triggers.usage_alerts import usage_alert_triggers

__all__ = [
    "Trigger",
    "TriggerReport",
    "at_risk_triggers",
    "churn_triggers",
    "daily_digest",
    "onboarding_triggers",
    "segment_triggers",
    "usage_alert_triggers",
]
