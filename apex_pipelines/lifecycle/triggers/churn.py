"""Customers likely to leave: the retention mail, except for a hold-out, and the operator's alert."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, rules, store
from apex_pipelines.lifecycle.figures import month_by_month
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue, reachable
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.clock import Clock

HOLDOUT_REASON = "hold-out: kept from the retention mail to measure its effect"
LISTED_AT_MOST = 25
REASONS_SHOWN = 3


def churn_triggers(
    client: Client,
    engine: sa.Engine,
    as_of_date: date,
    clock: Clock,
    *,
    flag_probability: float,
    top_count: int = 10,
) -> TriggerReport:
    """Act on the scores of `as_of_date`.

    A customer above `flag_probability` gets the retention mail once in 30 days
    (`churn_risk:<customer>:<first day>`). Hold-out customers get an outbox row too, already skipped with its
    reason, so that the two groups can be compared. The operator gets one alert a day, with the flagged
    customers and the `top_count` with the highest expected profit of being kept; none when both are empty.
    """
    report = TriggerReport()
    scores = marts.churn_scores(client, as_of_date)
    flagged = [score for score in scores if score.probability > flag_probability]
    use = marts.use_around(client, {score.customer_id for score in flagged}, as_of_date)
    with engine.begin() as connection:
        store.lock_trigger(connection, "churn")
        customers = store.customers_by_id(connection, {score.customer_id for score in scores})
        starts = store.episode_starts(connection, "churn_risk", {score.customer_id for score in flagged})
        requests = []
        present = []
        for score in flagged:
            customer = reachable(customers, score.customer_id, report)
            if customer is None:
                continue
            present.append(score)
            if not rules.starts_episode(starts.get(customer.id, ()), as_of_date):
                report.skipped["mailed in this episode"] += 1
                continue
            requests.append(
                MailRequest(
                    email_type="churn_risk",
                    customer_id=customer.id,
                    data={"figures": month_by_month(use.get(customer.id, {}))},
                    occurrence_key=f"churn_risk:{customer.id}:{as_of_date.isoformat()}",
                    skip_reason=HOLDOUT_REASON if score.holdout else None,
                )
            )
        worthwhile = [
            score
            for score in scores
            if score.expected_profit > 0
            and score.customer_id in customers
            and not customers[score.customer_id].canceled
        ][:top_count]
        if present or worthwhile:
            requests.append(_alert(present, worthwhile, customers, as_of_date, flag_probability))
        queue(connection, requests, clock.now(), report)
    return report


def _alert(
    flagged: Sequence[marts.ChurnScore],
    top: Sequence[marts.ChurnScore],
    customers: Mapping[str, store.CustomerFacts],
    as_of_date: date,
    flag_probability: float,
) -> MailRequest:
    return MailRequest(
        email_type="churn_alert",
        customer_id=None,
        data={
            "as_of_date": as_of_date,
            "flagged_count": len(flagged),
            "holdout_count": sum(score.holdout for score in flagged),
            "threshold_percent": round(flag_probability * 100),
            "flagged": [_line(score, customers[score.customer_id]) for score in flagged[:LISTED_AT_MOST]],
            "top": [_line(score, customers[score.customer_id]) for score in top],
        },
        occurrence_key=f"churn_alert:{as_of_date.isoformat()}",
    )


def _line(score: marts.ChurnScore, customer: store.CustomerFacts) -> dict[str, Any]:
    return {
        "customer_id": customer.id,
        "name": customer.name,
        "plan_name": customer.plan_name,
        "probability_percent": round(score.probability * 100),
        "expected_profit": f"{score.expected_profit:.2f}",
        "reasons": ", ".join(_reasons(score.reasons)) or "no reasons recorded",
    }


def _reasons(text: str) -> list[str]:
    """The strongest reasons as `feature value`; `text` is the JSON list that the model wrote."""
    return [
        f"{reason['feature']} {_value(reason['value'])}"
        for reason in json.loads(text or "[]")[:REASONS_SHOWN]
    ]


def _value(value: float | None) -> str:
    """A feature's value; None is one that the model had to do without."""
    return "unknown" if value is None else f"{float(value):.4g}"
