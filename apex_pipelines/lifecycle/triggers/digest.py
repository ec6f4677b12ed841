"""The operator's daily digest: what happened yesterday and what waits today, in one mail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, store
from apex_pipelines.lifecycle.figures import Rows, amount, metric_label
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue
from apex_pipelines.messaging.formatting import money, number
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.catalogue import metrics, plans
from apex_pipelines.platform.clock import Clock

_MAILS = sa.text("""
    select count(*) filter (where outcome = 'sent' and processed_at >= :from and processed_at < :to) as sent,
           count(*) filter (
               where outcome = 'skipped' and processed_at >= :from and processed_at < :to
           ) as skipped,
           count(*) filter (where outcome = 'failed' and processed_at is not null) as failed,
           count(*) filter (where processed_at is null) as waiting
    from events where event_type like 'email.%'
""")


def daily_digest(client: Client, engine: sa.Engine, as_of_date: date, clock: Clock) -> TriggerReport:
    """Queue the digest of `as_of_date` to the operator, once a day.

    Yesterday is the last complete UTC day before `as_of_date`. Money of different currencies is never added.
    """
    report = TriggerReport()
    yesterday = as_of_date - timedelta(days=1)
    day = marts.digest_day(client, yesterday)
    before = marts.digest_day(client, yesterday - timedelta(days=1))
    risks = Counter(row.reason for row in marts.at_risk(client, as_of_date))
    segments = marts.segment_sizes(client, as_of_date)
    with engine.begin() as connection:
        window = {"from": store.midnight(yesterday), "to": store.midnight(as_of_date)}
        sections: list[dict[str, Any]] = [
            {
                "title": "Customers",
                "figures": [
                    ["Sign-ups yesterday", number(day.sign_ups)],
                    *([f"… on {_plan_name(plan)}", number(n)] for plan, n in day.sign_ups_by_plan.items()),
                    ["First requests yesterday", number(day.integrations)],
                    ["Active yesterday", number(day.active_customers)],
                    ["Active the day before", number(before.active_customers)],
                    *_subscription_rows(day),
                    ["Cancelled yesterday", number(day.cancellations)],
                ],
            },
            {"title": "Use yesterday", "figures": _use_rows(day, before)},
            {"title": "Payments yesterday", "figures": _payment_rows(day)},
            {
                "title": "Worth a look today",
                "figures": [
                    *(
                        [f"At risk: {reason.replace('_', ' ')}", number(n)]
                        for reason, n in sorted(risks.items())
                    ),
                    *([f"Segment: {name.replace('_', ' ')}", number(n)] for name, n in segments.items()),
                ]
                or [["At risk or in a segment", "nobody"]],
            },
            {"title": "Mail", "figures": _mail_rows(connection, window)},
        ]
        headline = f"{_count(day.sign_ups, 'sign-up')}, {_count(day.active_customers, 'active customer')}"
        request = MailRequest(
            email_type="daily_digest",
            customer_id=None,
            data={"as_of_date": as_of_date, "headline": headline, "sections": sections},
            occurrence_key=f"daily_digest:{as_of_date.isoformat()}",
        )
        queue(connection, [request], clock.now(), report)
    return report


def _subscription_rows(day: marts.DigestDay) -> Rows:
    rows = [
        [f"Subscriptions {status.replace('_', ' ')}", number(n)]
        for status, n in day.subscriptions_by_status.items()
    ]
    recurring = [["Monthly recurring revenue", money(cents, code)] for code, cents in day.mrr_cents.items()]
    return rows + recurring


def _use_rows(day: marts.DigestDay, before: marts.DigestDay) -> Rows:
    rows = []
    for name in metrics():
        quantity, earlier = day.quantities.get(name, 0), before.quantities.get(name, 0)
        if quantity or earlier:
            label = metric_label(name)
            rows.append(
                [
                    label[0].upper() + label[1:],
                    f"{amount(name, quantity)} (day before: {amount(name, earlier)})",
                ]
            )
    if day.error_rate is not None:
        rows.append(["SDK errors per API call", f"{day.error_rate:.2%}"])
    return rows or [["Telemetry", "none"]]


def _payment_rows(day: marts.DigestDay) -> Rows:
    rows = []
    if day.payments_succeeded:
        rows.append([f"Succeeded: {day.payments_succeeded}", _amounts(day.collected_cents)])
    if day.payments_failed:
        rows.append([f"Failed: {day.payments_failed}", _amounts(day.failed_cents)])
    rows = rows or [["Payments", "none"]]
    rows.append(["Collected this month", _amounts(day.collected_month_to_date_cents)])
    if day.revenue_forecast_cents:
        rows.append(["Revenue of the month, forecast", _amounts(day.revenue_forecast_cents)])
    return rows


def _amounts(cents: Mapping[str, int]) -> str:
    """Amounts of several currencies side by side."""
    return ", ".join(money(amount_cents, code) for code, amount_cents in cents.items()) or "nothing"


def _mail_rows(connection: sa.Connection, window: dict[str, Any]) -> Rows:
    mails = connection.execute(_MAILS, window).one()
    return [
        ["Sent yesterday", number(mails.sent)],
        ["Not sent yesterday, with a reason", number(mails.skipped)],
        ["Waiting now", number(mails.waiting)],
        ["Failed for good, to be looked at", number(mails.failed)],
    ]


def _plan_name(plan_type: str) -> str:
    plan = plans().get(plan_type)
    return plan.name if plan else "no plan"


def _count(n: int, noun: str) -> str:
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"
