"""Alerts on use: thresholds of an included quantity, each recorded once a billing period."""

from __future__ import annotations

from datetime import date

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, rules, store
from apex_pipelines.lifecycle.figures import metric_label
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue, reachable
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.catalogue import metrics, thresholds
from apex_pipelines.platform.clock import Clock


def usage_alert_triggers(client: Client, engine: sa.Engine, as_of_date: date, clock: Clock) -> TriggerReport:
    """Record every threshold that use has newly reached, and mail the highest.

    `as_of_date` only has to be the day for which the mart was built. Late events may reach a threshold of a
    period that has ended: it is recorded, and mailed while the end is fresh.
    """
    report = TriggerReport()
    percents = thresholds("usage_alert")["threshold_percent"]
    used = [
        row
        for row in marts.usage_by_period(
            client, min(percents) / 100, ended_after=store.midnight(as_of_date) - rules.ENDED_PERIOD_CATCH_UP
        )
        if row.period_start.date() <= as_of_date
    ]
    with engine.begin() as connection:
        store.lock_trigger(connection, "usage_alerts")
        ids = {row.customer_id for row in used}
        customers = store.customers_by_id(connection, ids)
        recorded = store.recorded_alerts(connection, ids)
        now = clock.now()
        alerts: list[dict[str, object]] = []
        requests = []
        for row in used:
            passed = rules.thresholds_passed(row.quantity, row.included, percents)
            before = recorded.get((row.customer_id, row.metric_type, row.period_start), set())
            new = [percent for percent in passed if percent not in before]
            if not new or reachable(customers, row.customer_id, report) is None:
                continue
            to_mail = (
                rules.threshold_to_mail(passed, before)
                if rules.mails_period(row.period_end.date(), as_of_date)
                else None
            )
            alerts.extend(
                {
                    "customer_id": row.customer_id,
                    "metric_type": row.metric_type,
                    "threshold_percent": percent,
                    "period_start": row.period_start,
                    "mailed": percent == to_mail,
                    "created_at": now,
                }
                for percent in new
            )
            report.recorded["usage_alerts"] += len(new)
            if to_mail is not None:
                requests.append(_request(row, to_mail, as_of_date))
        store.record_alerts(connection, alerts)
        queue(connection, requests, now, report)
    return report


def _request(row: marts.PeriodUsage, percent: int, as_of_date: date) -> MailRequest:
    return MailRequest(
        email_type=f"usage_alert_{percent}",
        customer_id=row.customer_id,
        data={
            "threshold_percent": percent,
            "metric_label": metric_label(row.metric_type),
            "unit": metrics()[row.metric_type].unit,
            "used": marts.in_units(row.metric_type, row.quantity),
            "included": marts.in_units(row.metric_type, row.included),
            "used_percent": row.quantity * 100 // row.included,
            "period_end": row.period_end.date(),
            "period_ended": row.period_end <= store.midnight(as_of_date),
        },
        occurrence_key=(
            f"usage_alert:{row.customer_id}:{row.metric_type}:{percent}:{row.period_start:%Y-%m-%dT%H:%M:%SZ}"
        ),
    )
