"""Entering a segment (power user, growing, VIP) triggers its mail; staying or soon returning does not."""

from __future__ import annotations

from datetime import date
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, rules, store
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue, reachable
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.clock import Clock


def segment_triggers(client: Client, engine: sa.Engine, as_of_date: date, clock: Clock) -> TriggerReport:
    """Mail customers who entered a segment in the week up to `as_of_date` and are still in it.

    The week lets missed days be caught up. A mail begins an episode of 30 days, within which no second mail
    goes out for that segment, however often the customer leaves and returns. The keys
    `segment:<segment>:<customer>:<first day>` in the outbox are the memory of it. Figures are those of the
    day of entry.
    """
    report = TriggerReport()
    entries = marts.segment_entries(client, as_of_date)
    mailed = [entry for entry in entries if entry.segment in rules.SEGMENT_MAILS]
    use = {
        day: marts.use_around(client, {e.customer_id for e in mailed if e.entered_on == day}, day)
        for day in {entry.entered_on for entry in mailed}
    }
    with engine.begin() as connection:
        store.lock_trigger(connection, "segments")
        customers = store.customers_by_id(connection, {entry.customer_id for entry in mailed})
        starts = {
            segment: store.episode_starts(
                connection, f"segment:{segment}", {e.customer_id for e in mailed if e.segment == segment}
            )
            for segment in {entry.segment for entry in mailed}
        }
        requests = []
        for entry in mailed:
            customer = reachable(customers, entry.customer_id, report)
            if customer is None:
                continue
            if not rules.starts_episode(starts[entry.segment].get(customer.id, ()), as_of_date):
                report.skipped["mailed in this episode"] += 1
                continue
            impressions = use[entry.entered_on].get(customer.id, {}).get("impressions", marts.Use())
            requests.append(
                MailRequest(
                    email_type=rules.SEGMENT_MAILS[entry.segment],
                    customer_id=customer.id,
                    data=_data(entry.segment, impressions, customer),
                    occurrence_key=f"segment:{entry.segment}:{customer.id}:{as_of_date.isoformat()}",
                )
            )
        queue(connection, requests, clock.now(), report)
    return report


def _data(segment: str, impressions: marts.Use, customer: store.CustomerFacts) -> dict[str, Any]:
    if segment == "vip":
        return {"plan_name": customer.plan_name}
    data: dict[str, Any] = {"impressions_30d": impressions.recent}
    if segment == "growing":
        data |= {
            "impressions_previous_30d": impressions.previous,
            "growth_percent": rules.growth_percent(impressions.recent, impressions.previous),
        }
    return data
