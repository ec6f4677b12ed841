"""A customer's first three weeks, day by day: what they get in the mail, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import set_status
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.lifecycle.triggers import (
    at_risk_triggers,
    churn_triggers,
    onboarding_triggers,
    segment_triggers,
    usage_alert_triggers,
)
from apex_pipelines.messaging.queue import DrainReport
from apex_pipelines.platform.clock import ManualClock
from tests.lifecycle.conftest import TODAY, Fill, SignUp, instant


def test_three_weeks_of_a_customer(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    """Signs up, gets stuck, integrates on day 4, grows to the limit, pays, falls silent in week three."""
    customer = sign_up(days_ago=0, trial=True)
    received: dict[int, list[str]] = {}

    for day in range(22):
        today = TODAY + timedelta(days=day)
        yesterday = today - timedelta(days=1)
        clock.set(instant(today, 8))
        if day == 5:  # yesterday the first request and, an hour later, the first ad
            fill("marts.onboarding", [
                {"customer_id": customer, "step": step, "occurred_at": instant(yesterday, hour)}
                for step, hour in (("first_request", 14), ("first_impression", 15))
            ])  # fmt: skip
        if 5 <= day <= 12:
            fill("marts.usage_daily", [
                {"customer_id": customer, "usage_date": yesterday, "metric_type": "impressions",
                 "quantity": 125_000, "event_count": 100}
            ])  # fmt: skip
        used = 125_000 * max(min(day - 4, 8), 0)
        marts.command("truncate table marts.usage_by_period")
        fill("marts.usage_by_period", [
            {"customer_id": customer, "subscription_id": "s", "period_start": instant(TODAY),
             "period_end": instant(TODAY + timedelta(days=30)), "metric_type": "impressions",
             "quantity": used, "included_quantity": 1_000_000, "used_ratio": used / 1_000_000}
        ])  # fmt: skip
        if 800_000 <= used <= 1_000_000:
            fill("marts.at_risk_customers", [
                {"customer_id": customer, "as_of_date": today, "reason": "near_limit",
                 "detail": f"{used} of 1000000 included impressions used"}
            ])  # fmt: skip
        if day >= 17:  # a week of silence after a week of use
            fill("marts.at_risk_customers", [
                {"customer_id": customer, "as_of_date": today, "reason": "usage_drop",
                 "detail": "0 impressions in the last 7 days, 875000 in the 7 before"}
            ])  # fmt: skip
        if day == 12:
            fill("marts.segment_memberships", [
                {"customer_id": customer, "segment": "growing", "entered_on": today, "left_on": None},
            ])  # fmt: skip
        if day >= 20:
            fill("ml.churn_scores", [
                {"customer_id": customer, "feature_date": today, "model_version": "m",
                 "probability": 0.81, "expected_profit": 12.5, "reasons": "[]", "holdout": 0,
                 "scored_at": clock.now()}
            ])  # fmt: skip
        if day == 14:
            with engine.begin() as connection:
                set_status(connection, customer, SubscriptionStatus.ACTIVE, clock.now())

        for _ in range(2):  # whatever runs twice changes nothing
            for trigger in (onboarding_triggers, at_risk_triggers, segment_triggers, usage_alert_triggers):
                trigger(marts, engine, today, clock)
            churn_triggers(marts, engine, today, clock, flag_probability=0.7)
            deliver()
        with engine.connect() as connection:
            received[day] = list(
                connection.scalars(
                    sa.text(
                        "select email_type from email_log where customer_id = :c and sent_at = :now "
                        "order by email_type"
                    ),
                    {"c": customer, "now": clock.now()},
                )
            )

    assert {day: kinds for day, kinds in received.items() if kinds} == {
        0: ["welcome"],
        2: ["onboarding_day_2"],
        5: ["first_impression"],
        7: ["onboarding_day_7", "trial_ending_7"],
        11: ["trial_ending_3", "upgrade_offer", "usage_alert_80"],
        12: ["growing", "onboarding_day_12", "usage_alert_100"],
        13: ["trial_ending_1"],
        17: ["usage_drop"],
        20: ["churn_risk"],
    }
    with engine.connect() as connection:
        steps = connection.scalars(sa.text("select step from onboarding_progress order by occurred_at")).all()
        percents = connection.scalars(
            sa.text("select threshold_percent from usage_alerts where mailed order by 1")
        ).all()
    assert steps == ["first_request", "first_impression"]
    assert percents == [80, 100]
