"""What all triggers share: who may get a life-cycle mail, and counting what was queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.store import CustomerFacts
from apex_pipelines.messaging.outbox import MailRequest, enqueue_many
from apex_pipelines.platform.clock import Clock

Trigger = Callable[[Client, sa.Engine, date, Clock], TriggerReport]


def reachable(
    customers: Mapping[str, CustomerFacts], customer_id: str, report: TriggerReport
) -> CustomerFacts | None:
    """The customer, when they may get life-cycle mail; else None, and the report says why."""
    customer = customers.get(customer_id)
    if customer is None:
        report.skipped["customer not in the operational database"] += 1
        return None
    if customer.canceled:
        report.skipped["subscription has ended"] += 1
        return None
    if customer.suspended:
        report.skipped["subscription is suspended"] += 1
        return None
    return customer


def queue(
    connection: sa.Connection, requests: Sequence[MailRequest], now: datetime, report: TriggerReport
) -> None:
    """Queue mails and count them by type; occurrences queued before are counted as such."""
    new = enqueue_many(connection, requests, now=now)
    for request in requests:
        if request.occurrence_key not in new:
            report.skipped["queued before"] += 1
        elif request.skip_reason is not None:
            report.skipped[request.skip_reason] += 1
        else:
            report.queued[request.email_type] += 1
