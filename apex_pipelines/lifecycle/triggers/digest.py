"""The operator's daily digest: what happened yesterday and what waits today, in one mail."""

from __future__ import annotations

from collections import Counter
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

_SIGN_UPS = sa.text("""
    select coalesce(s.plan_type, 'no plan') as plan_type, count(*) as n
    from customers c
    left join lateral (
        select plan_type from subscriptions s where s.customer_id = c.id order by started_at limit 1
    ) s on true
    where c.created_at >= :from and c.created_at < :to
    group by 1 order by 1
""")
_SUBSCRIPTIONS = sa.text(
    "select status, currency, count(*) as n, sum(base_price_cents) as cents from subscriptions "
    "group by 1, 2 order by 1"
)
_CANCELED = sa.text("select count(*) from subscriptions where cancelled_at >= :from and cancelled_at < :to")
_PAYMENTS = sa.text(
    "select status, currency, count(*) as n, sum(amount_cents) as cents from payments "
    "where occurred_at >= :from and occurred_at < :to group by 1, 2 order by 1, 2"
)
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
    totals = marts.day_totals(client, yesterday)
    before = marts.day_totals(client, yesterday - timedelta(days=1))
    risks = Counter(row.reason for row in marts.at_risk(client, as_of_date))
    segments = marts.segment_sizes(client, as_of_date)
    with engine.begin() as connection:
        window = {"from": store.midnight(yesterday), "to": store.midnight(as_of_date)}
        sign_ups = connection.execute(_SIGN_UPS, window).all()
        signed_up = sum(row.n for row in sign_ups)
        sections: list[dict[str, Any]] = [
            {
                "title": "Customers",
                "figures": [
                    ["Sign-ups yesterday", number(signed_up)],
                    *([f"… on {_plan_name(row.plan_type)}", number(row.n)] for row in sign_ups),
                    ["Active yesterday", number(totals.active_customers)],
                    ["Active the day before", number(before.active_customers)],
                    *_subscription_rows(connection),
                    ["Cancelled yesterday", number(int(connection.scalar(_CANCELED, window) or 0))],
                ],
            },
            {"title": "Use yesterday", "figures": _use_rows(totals, before)},
            {"title": "Payments yesterday", "figures": _payment_rows(connection, window)},
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
        headline = f"{_count(signed_up, 'sign-up')}, {_count(totals.active_customers, 'active customer')}"
        request = MailRequest(
            email_type="daily_digest",
            customer_id=None,
            data={"as_of_date": as_of_date, "headline": headline, "sections": sections},
            occurrence_key=f"daily_digest:{as_of_date.isoformat()}",
        )
        queue(connection, [request], clock.now(), report)
    return report


def _subscription_rows(connection: sa.Connection) -> Rows:
    statuses: Counter[str] = Counter()
    revenue: Counter[str] = Counter()
    for row in connection.execute(_SUBSCRIPTIONS):
        statuses[row.status] += row.n
        if row.status in ("active", "past_due"):
            revenue[row.currency] += int(row.cents)
    rows = [
        [f"Subscriptions {status.replace('_', ' ')}", number(n)] for status, n in sorted(statuses.items())
    ]
    recurring = [["Monthly recurring revenue", money(cents, code)] for code, cents in sorted(revenue.items())]
    return rows + recurring


def _use_rows(totals: marts.DayTotals, before: marts.DayTotals) -> Rows:
    rows = []
    for name in metrics():
        quantity, earlier = totals.quantities.get(name, 0), before.quantities.get(name, 0)
        if quantity or earlier:
            label = metric_label(name)
            rows.append(
                [
                    label[0].upper() + label[1:],
                    f"{amount(name, quantity)} (day before: {amount(name, earlier)})",
                ]
            )
    return rows or [["Telemetry", "none"]]


def _payment_rows(connection: sa.Connection, window: dict[str, Any]) -> Rows:
    rows = [
        [f"{row.status.capitalize()}: {row.n}", money(int(row.cents), row.currency)]
        for row in connection.execute(_PAYMENTS, window)
    ]
    return rows or [["Payments", "none"]]


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
    return plan.name if plan else plan_type


def _count(n: int, noun: str) -> str:
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"
