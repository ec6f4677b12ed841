"""Triggers on a real warehouse and database: each cause mails once; what is not mailed is accounted for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import cancel, set_status
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.lifecycle.store import lock_trigger
from apex_pipelines.lifecycle.triggers import (
    TriggerReport,
    at_risk_triggers,
    churn_triggers,
    daily_digest,
    onboarding_triggers,
    segment_triggers,
    usage_alert_triggers,
)
from apex_pipelines.messaging.mail_types import mail_type
from apex_pipelines.messaging.outbox import MailRequest, enqueue_many
from apex_pipelines.messaging.queue import DrainReport
from apex_pipelines.messaging.rendering import Renderer
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from tests.lifecycle.conftest import TODAY, Fill, SignUp, instant, mail_data, mails


def _at_risk(customer: str, reason: str = "usage_drop", day: date = TODAY) -> dict[str, Any]:
    detail = "41220 impressions in the last 7 days, 120874 in the 7 before"
    return {"customer_id": customer, "as_of_date": day, "reason": reason, "detail": detail}


def _period(customer: str, quantity: int, included: int | None = 1_000_000, **changes: Any) -> dict[str, Any]:
    return {
        "customer_id": customer,
        "subscription_id": "sub_1",
        "period_start": instant(TODAY - timedelta(days=10)),
        "period_end": instant(TODAY + timedelta(days=20)),
        "metric_type": "impressions",
        "quantity": quantity,
        "included_quantity": included,
        "used_ratio": quantity / included if included else 0.0,
    } | changes


def _used(customer: str, day: date, quantity: int, metric: str = "impressions") -> dict[str, Any]:
    return {
        "customer_id": customer,
        "usage_date": day,
        "metric_type": metric,
        "quantity": quantity,
        "event_count": 1,
    }


def _score(customer: str, probability: float, **changes: Any) -> dict[str, Any]:
    return {
        "customer_id": customer,
        "feature_date": TODAY,
        "model_version": "m1",
        "probability": probability,
        "expected_profit": 10 * probability,
        "reasons": '[{"feature": "usage_change_pct", "value": -0.714, "effect": 0.2}]',
        "holdout": 0,
        "scored_at": instant(TODAY, 8),
    } | changes


def _stay(customer: str, segment: str, entered_on: date, left_on: date | None = None) -> dict[str, Any]:
    return {"customer_id": customer, "segment": segment, "entered_on": entered_on, "left_on": left_on}


def _alerts(engine: sa.Engine) -> list[tuple[str, int, bool]]:
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("select metric_type, threshold_percent, mailed from usage_alerts order by 1, 2")
        )
        return [(row[0], row[1], row[2]) for row in rows]


# --- at risk ------------------------------------------------------------------------------------------------


def test_each_reason_has_its_mail_with_the_figures_of_the_cause(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    dropping, silent, near = sign_up(), sign_up(days_ago=7), sign_up(plan="indie")
    fill("marts.at_risk_customers",
         [_at_risk(dropping), _at_risk(silent, "no_telemetry"), _at_risk(near, "near_limit")])  # fmt: skip

    report = at_risk_triggers(marts, engine, TODAY, clock)

    assert report.queued == Counter(usage_drop=1, integration_help=1, upgrade_offer=1)
    assert "41220 impressions" in mail_data(engine, "usage_drop")["reason"]
    assert mail_data(engine, "integration_help")["signed_up_on"] == "2026-05-25"
    offer = mail_data(engine, "upgrade_offer")
    assert (offer["next_plan_name"], offer["next_price_cents"]) == ("Studio", 49_900)
    assert deliver().sent.total() == 3


def test_staying_at_risk_is_mailed_once_in_thirty_days(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    days = [TODAY + timedelta(days=n) for n in range(31)]
    fill("marts.at_risk_customers", [_at_risk(customer, day=day) for day in days])
    queued = []
    for day in days:
        clock.set(instant(day, 8))
        if at_risk_triggers(marts, engine, day, clock).queued:
            queued.append(day)
    assert queued == [TODAY, TODAY + timedelta(days=30)]


def test_catching_up_on_an_earlier_day_does_not_mail_the_same_episode_again(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    fill("marts.at_risk_customers", [_at_risk(customer), _at_risk(customer, day=TODAY - timedelta(days=1))])
    at_risk_triggers(marts, engine, TODAY, clock)
    late = at_risk_triggers(marts, engine, TODAY - timedelta(days=1), clock)
    assert late.queued.total() == 0
    assert late.skipped == Counter({"mailed in this episode": 1})


def test_customers_who_left_or_are_unknown_get_nothing_and_are_counted(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    gone = sign_up()
    with engine.begin() as connection:
        cancel(connection, gone, clock.now())
    fill("marts.at_risk_customers", [_at_risk(gone), _at_risk("cus_unknown"), _at_risk(sign_up(plan=None))])
    fill("marts.segment_memberships",
         [{"customer_id": gone, "segment": "vip", "entered_on": TODAY, "left_on": None}])  # fmt: skip
    fill("marts.usage_by_period", [_period(gone, 900_000), _period("cus_unknown", 900_000)])
    fill("ml.churn_scores", [_score(gone, 0.9)])

    risk = at_risk_triggers(marts, engine, TODAY, clock)
    others = [
        segment_triggers(marts, engine, TODAY, clock),
        usage_alert_triggers(marts, engine, TODAY, clock),
        churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7),
    ]

    assert risk.queued == Counter(usage_drop=1)  # an import without subscription is watched by its use
    assert risk.skipped == Counter(
        {"subscription has ended": 1, "customer not in the operational database": 1}
    )
    assert sum(report.queued.total() for report in others) == 0
    assert _alerts(engine) == []


def test_suspended_customers_get_no_offers_and_are_counted(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    with engine.begin() as connection:
        set_status(connection, customer, SubscriptionStatus.SUSPENDED, clock.now())
    fill("marts.at_risk_customers", [_at_risk(customer), _at_risk(customer, "near_limit")])
    fill("marts.segment_memberships", [_stay(customer, "vip", TODAY)])
    fill("ml.churn_scores", [_score(customer, 0.9, expected_profit=-1.0)])

    reports = [
        at_risk_triggers(marts, engine, TODAY, clock),
        segment_triggers(marts, engine, TODAY, clock),
        churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7),
    ]

    assert mails(engine) == []
    assert [report.skipped for report in reports] == [
        Counter({"subscription is suspended": times}) for times in (2, 1, 1)
    ]


@pytest.mark.parametrize(
    ("plan", "included", "offered"),
    [
        ("indie", None, "Studio"),
        ("indie", 5_000_000, "Studio"),  # own terms above the plan's
        ("starter", 10_000_000, None),  # as much as Studio; Enterprise has no price to show
        ("studio", 500_000, None),  # no plan below the own one, though it includes more
    ],
)
def test_upgrade_offer_compares_with_the_customers_own_terms(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    plan: str, included: int | None, offered: str | None,
) -> None:  # fmt: skip
    customer = sign_up(plan=plan, included_impressions=included)
    fill("marts.at_risk_customers", [_at_risk(customer, "near_limit")])
    assert at_risk_triggers(marts, engine, TODAY, clock).queued == Counter(upgrade_offer=1)
    assert mail_data(engine, "upgrade_offer").get("next_plan_name") == offered


@pytest.mark.parametrize(("plan", "included"), [("enterprise", None), ("studio", 100_000_000)])
def test_no_upgrade_offer_where_no_plan_has_more_room(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    plan: str, included: int | None,
) -> None:  # fmt: skip
    customer = sign_up(plan=plan, included_impressions=included)
    fill("marts.at_risk_customers", [_at_risk(customer, "near_limit"), _at_risk(customer)])
    report = at_risk_triggers(marts, engine, TODAY, clock)
    assert report.queued == Counter(usage_drop=1)
    assert report.skipped == Counter({"no roomier plan to offer": 1})


def test_two_runs_at_once_queue_one_mail(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock, own_warehouse: Settings
) -> None:
    customers = [sign_up() for _ in range(10)]
    yesterday = TODAY - timedelta(days=1)
    fill("marts.at_risk_customers", [_at_risk(c, day=day) for c in customers for day in (yesterday, TODAY)])
    fill("marts.usage_by_period", [_period(c, 950_000) for c in customers])
    start = threading.Barrier(4)
    reports: list[TriggerReport] = []

    def work(day: date) -> None:
        client = clickhouse.connect(own_warehouse, query_origin="tests")
        start.wait()
        for trigger in (at_risk_triggers, usage_alert_triggers):
            reports.append(trigger(client, engine, day, clock))
        client.close()

    threads = [threading.Thread(target=work, args=(day,)) for day in (yesterday, TODAY) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(reports) == 8
    assert Counter(mails(engine)) == Counter(usage_drop=10, usage_alert_90=10)


def test_run_of_another_day_waits_for_the_one_that_is_deciding(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    fill("marts.at_risk_customers", [_at_risk(customer, day=TODAY - timedelta(days=1))])
    reports: list[TriggerReport] = []
    run = threading.Thread(
        target=lambda: reports.append(at_risk_triggers(marts, engine, TODAY - timedelta(days=1), clock))
    )
    with engine.begin() as connection:  # today's run, which has decided and not yet committed
        lock_trigger(connection, "at_risk")
        key = f"at_risk:usage_drop:{customer}:{TODAY}"
        enqueue_many(connection, [MailRequest("usage_drop", customer, {"reason": "r"}, key)], now=clock.now())
        run.start()
        run.join(0.5)
        assert reports == []
    run.join(30)
    assert mails(engine) == ["usage_drop"]


# --- segments -----------------------------------------------------------------------------------------------


def test_entering_a_segment_is_mailed_and_staying_in_it_is_not(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    customer, old, left = sign_up(plan="enterprise"), sign_up(), sign_up()
    entered = TODAY - timedelta(days=3)
    rows = [(customer, "power_user", entered, None), (customer, "growing", entered, None),
            (customer, "vip", TODAY, None), (customer, "at_risk", TODAY, None),
            (old, "growing", TODAY - timedelta(days=7), None), (left, "growing", entered, TODAY),
            (left, "power_user", TODAY + timedelta(days=1), None)]  # fmt: skip
    names = ("customer_id", "segment", "entered_on", "left_on")
    fill("marts.segment_memberships", [dict(zip(names, row, strict=True)) for row in rows])
    fill("marts.usage_daily", [
        {"customer_id": customer, "usage_date": entered - timedelta(days=days), "metric_type": "impressions",
         "quantity": quantity, "event_count": 1}
        for days, quantity in ((0, 999), (1, 1_000_000), (30, 500_000), (31, 800_000), (60, 200_000), (61, 7))
    ])  # fmt: skip

    report = segment_triggers(marts, engine, TODAY, clock)

    assert report.queued == Counter(power_user=1, growing=1, vip_welcome=1)
    assert mail_data(engine, "growing") == {
        "impressions_30d": 1_500_000, "impressions_previous_30d": 1_000_000, "growth_percent": 50,
    }  # fmt: skip
    assert mail_data(engine, "vip_welcome") == {"plan_name": "Enterprise"}
    for day in range(1, 5):
        assert segment_triggers(marts, engine, TODAY + timedelta(days=day), clock).queued.keys() <= {
            "power_user"
        }
    assert mails(engine, customer) == ["growing", "power_user", "vip_welcome"]
    assert deliver().failed.total() == 0


def test_entering_again_within_thirty_days_is_not_mailed(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    stays = [(n, n + 3) for n in range(0, 36, 4)]  # three days in, one day out
    fill("marts.segment_memberships", [
        _stay(customer, "growing", TODAY + timedelta(days=entered), TODAY + timedelta(days=left))
        for entered, left in stays
    ])  # fmt: skip
    fill("marts.segment_memberships", [_stay(customer, "power_user", TODAY + timedelta(days=5))])
    queued = []
    for day in range(36):
        for _ in range(2):
            report = segment_triggers(marts, engine, TODAY + timedelta(days=day), clock)
            queued += [(day, kind) for kind in report.queued]
            if day in (1, 4):  # the same entry, then another
                assert report.skipped == Counter({"mailed in this episode": 1})
    assert queued == [(0, "growing"), (5, "power_user"), (30, "growing")]


# --- churn --------------------------------------------------------------------------------------------------


def test_flagged_customers_are_mailed_except_the_holdout_and_the_operator_is_told(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    flagged, held_out, calm, edge = (sign_up() for _ in range(4))
    fill("ml.churn_scores", [
        _score(flagged, 0.2, scored_at=instant(TODAY, 7)),  # scored again since
        _score(flagged, 0.91), _score(held_out, 0.85, holdout=1), _score(edge, 0.70),
        _score(calm, 0.1, expected_profit=50.0), _score(calm, 0.99, feature_date=TODAY - timedelta(days=1)),
    ])  # fmt: skip
    fill("marts.usage_daily", [
        {"customer_id": flagged, "usage_date": TODAY - timedelta(days=days), "metric_type": metric,
         "quantity": quantity, "event_count": 1}
        for days, metric, quantity in ((2, "impressions", 210_400), (45, "impressions", 612_090),
                                       (3, "console_logins", 4))
    ])  # fmt: skip

    report = churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7)

    assert report.queued == Counter(churn_risk=1, churn_alert=1)
    assert mails(engine, flagged) == ["churn_risk"]
    assert mails(engine, held_out) == ["[churn_risk]"]
    assert mails(engine, calm) == mails(engine, edge) == []
    with engine.connect() as connection:
        held = connection.execute(
            sa.text("select error_message, processed_at from events where outcome = 'skipped'")
        ).one()
    assert held.error_message.startswith("hold-out")
    assert held.processed_at == clock.now()
    alert = mail_data(engine, "churn_alert")
    assert (alert["flagged_count"], alert["holdout_count"], alert["threshold_percent"]) == (2, 1, 70)
    assert [line["customer_id"] for line in alert["top"]] == [calm, flagged, held_out, edge]
    assert alert["top"][0]["reasons"] == "usage_change_pct -0.714"
    with engine.connect() as connection:
        figures = connection.scalar(
            sa.text(
                "select data -> 'figures' from events "
                "where event_type = 'email.churn_risk' and outcome is null"
            )
        )
    assert figures == [["Impressions in the last 30 days", "210,400"], ["In the 30 days before", "612,090"]]

    again = churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7)
    assert again.queued.total() == 0
    assert deliver().sent == Counter(churn_risk=1, churn_alert=1)


def test_flagged_day_after_day_is_mailed_once_but_the_operator_hears_daily(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer, held_out = sign_up(), sign_up()
    days = [TODAY + timedelta(days=n) for n in range(3)]
    fill("ml.churn_scores", [
        _score(who, 0.9, feature_date=day, holdout=holdout)
        for day in days for who, holdout in ((customer, 0), (held_out, 1))
    ])  # fmt: skip
    for day in days:
        churn_triggers(marts, engine, day, clock, flag_probability=0.7)
    assert Counter(mails(engine)) == Counter({"churn_risk": 1, "[churn_risk]": 1, "churn_alert": 3})


@pytest.mark.parametrize(("recent", "previous"), [(612_090, 210_400), (500, 500), (0, 0)])
def test_retention_mail_has_no_figures_unless_use_fell(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport], recent: int, previous: int,
) -> None:  # fmt: skip
    customer = sign_up()
    fill("ml.churn_scores", [_score(customer, 0.9)])
    fill("marts.usage_daily", [
        _used(customer, TODAY - timedelta(days=2), recent),
        _used(customer, TODAY - timedelta(days=45), previous),
    ])  # fmt: skip
    churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7)
    assert mail_data(engine, "churn_risk") == {"figures": []}
    assert deliver().sent == Counter(churn_risk=1, churn_alert=1)


def test_reason_without_a_value_is_unknown_to_the_operator(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    reasons = (
        '[{"feature": "days_since_last_login", "value": null, "effect": 0.3},'
        ' {"feature": "usage_change_pct", "value": -0.714, "effect": 0.2}]'
    )
    fill("ml.churn_scores", [_score(sign_up(), 0.9, reasons=reasons)])
    churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7)
    line = mail_data(engine, "churn_alert")["flagged"][0]
    assert line["reasons"] == "days_since_last_login unknown, usage_change_pct -0.714"


def test_no_scores_no_alert(marts: Client, engine: sa.Engine, clock: ManualClock) -> None:
    assert churn_triggers(marts, engine, TODAY, clock, flag_probability=0.7).queued.total() == 0


# --- use ----------------------------------------------------------------------------------------------------


def test_jump_over_several_thresholds_records_all_and_mails_the_highest(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    customer = sign_up()
    fill("marts.usage_by_period", [
        _period(customer, 1_049_999),
        _period(customer, 79_999_999_999, 100_000_000_000, metric_type="data_transfer"),
        _period(customer, 12_000_000, None, metric_type="mediated_revenue"),
    ])  # fmt: skip

    report = usage_alert_triggers(marts, engine, TODAY, clock)

    assert report.recorded == Counter(usage_alerts=3)
    assert _alerts(engine) == [
        ("impressions", 80, False),
        ("impressions", 90, False),
        ("impressions", 100, True),
    ]
    assert mails(engine) == ["usage_alert_100"]
    assert mail_data(engine, "usage_alert_100")["used_percent"] == 104
    assert usage_alert_triggers(marts, engine, TODAY, clock).queued.total() == 0

    marts.command("truncate table marts.usage_by_period")
    fill("marts.usage_by_period", [
        _period(customer, 1_100_000),
        _period(customer, 95_250_000_000, 100_000_000_000, metric_type="data_transfer"),
    ])  # fmt: skip
    assert usage_alert_triggers(marts, engine, TODAY, clock).queued == Counter(
        usage_alert_110=1, usage_alert_90=1
    )
    data = mail_data(engine, "usage_alert_90")
    assert (data["used"], data["included"], data["unit"]) == ("95.250000000", "100.000000000", "GB")
    assert deliver().sent.total() == 3


def test_next_period_begins_anew_and_periods_of_other_days_are_left_alone(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up()
    fill("marts.usage_by_period", [_period(customer, 850_000)])
    usage_alert_triggers(marts, engine, TODAY, clock)
    assert usage_alert_triggers(marts, engine, TODAY + timedelta(days=40), clock).queued.total() == 0
    marts.command("truncate table marts.usage_by_period")
    start, end = instant(TODAY + timedelta(days=20)), instant(TODAY + timedelta(days=50))
    fill("marts.usage_by_period", [_period(customer, 850_000, period_start=start, period_end=end)])
    later = TODAY + timedelta(days=40)
    assert usage_alert_triggers(marts, engine, later, clock).queued == Counter(usage_alert_80=1)


@pytest.mark.parametrize(
    ("ended_days_ago", "recorded", "mailed"),
    [(1, True, True), (2, True, True), (3, True, False), (34, True, False), (35, False, False)],
)
def test_thresholds_that_late_use_reaches_in_an_ended_period_are_recorded_and_mailed_while_fresh(
    ended_days_ago: int, recorded: bool, mailed: bool,
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
) -> None:  # fmt: skip
    customer = sign_up()
    end = instant(TODAY - timedelta(days=ended_days_ago))
    ended = {"period_start": end - timedelta(days=30), "period_end": end}
    fill("marts.usage_by_period", [_period(customer, 950_000, **ended), _period(customer, 10)])

    for _ in range(2):
        usage_alert_triggers(marts, engine, TODAY, clock)

    expected = [("impressions", 80, False), ("impressions", 90, mailed)]
    assert _alerts(engine) == (expected if recorded else [])
    assert mails(engine) == (["usage_alert_90"] if mailed else [])
    if mailed:
        assert mail_data(engine, "usage_alert_90")["period_ended"] is True


# --- onboarding ---------------------------------------------------------------------------------------------


def _steps(customer: str, *steps: tuple[str, int]) -> list[dict[str, Any]]:
    return [
        {"customer_id": customer, "step": step, "occurred_at": instant(TODAY - timedelta(days=days), 10)}
        for step, days in steps
    ]


def test_steps_are_recorded_once_and_mailed_while_fresh(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    requested, shown, long_ago, erased = sign_up(40), sign_up(40), sign_up(40), "cus_erased"
    fill("marts.onboarding", [
        *_steps(requested, ("signed_up", 40), ("first_request", 2)),
        *_steps(shown, ("signed_up", 40), ("first_request", 1), ("first_impression", 1)),
        *_steps(long_ago, ("signed_up", 40), ("first_request", 3), ("first_impression", 3)),
        *_steps(erased, ("first_request", 1)),
    ])  # fmt: skip

    report = onboarding_triggers(marts, engine, TODAY, clock)

    assert report.recorded == Counter(onboarding_progress=8)
    assert mails(engine, requested) == ["first_request"]
    assert mails(engine, shown) == ["first_impression"]
    assert mails(engine, long_ago) == []
    again = onboarding_triggers(marts, engine, TODAY + timedelta(days=1), clock)
    assert (again.queued.total(), again.recorded.total()) == (0, 0)


def test_a_download_brings_the_guide_of_its_platform_unless_requests_came(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    new, integrated, late = sign_up(1), sign_up(1), sign_up(30)
    fill("marts.onboarding", [
        {"customer_id": customer, "step": step, "occurred_at": instant(TODAY - timedelta(days=days), 9)}
        for customer, step, days in (
            (new, "sdk_downloaded.ios", 0), (new, "sdk_downloaded.unity", 0),
            (integrated, "sdk_downloaded.android", 0), (integrated, "first_request", 0),
            (late, "sdk_downloaded.flutter", 3),
        )
    ])  # fmt: skip

    report = onboarding_triggers(marts, engine, TODAY, clock)
    again = onboarding_triggers(marts, engine, TODAY, clock)

    assert report.recorded["onboarding_progress"] == 5
    assert again.recorded["onboarding_progress"] == again.queued["sdk_guide"] == 0
    assert mails(engine, new).count("sdk_guide") == 2
    assert "sdk_guide" not in mails(engine, integrated) + mails(engine, late)
    with engine.connect() as connection:
        platforms = connection.scalars(
            sa.text("select data->>'platform' from events where event_type = 'email.sdk_guide' order by 1")
        ).all()
    assert platforms == ["Unity", "iOS"]
    assert deliver().sent["sdk_guide"] == 1  # the second waits, since a type goes once in 24 h


def test_welcome_goes_to_recent_sign_ups_with_a_plan(
    marts: Client, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    today, late, imported, future = sign_up(0, trial=True), sign_up(3), sign_up(1, plan=None), sign_up(-1)
    onboarding_triggers(marts, engine, TODAY, clock)
    assert mails(engine, today) == ["welcome"]
    assert mails(engine, imported) == mails(engine, future) == []
    assert "welcome" not in mails(engine, late)
    assert mail_data(engine, "welcome")["trial_end"] == "2026-06-15"


@pytest.mark.parametrize(
    ("trial", "trial_days", "subject"),
    [
        (True, 14, "Welcome to ApexMediation: your 14 days start now"),
        (False, 0, "Welcome to ApexMediation: your Indie plan is active"),
    ],
)
def test_welcome_promises_a_trial_only_to_who_has_one(
    marts: Client, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    trial: bool, trial_days: int, subject: str,
) -> None:  # fmt: skip
    sign_up(0, trial=trial)
    onboarding_triggers(marts, engine, TODAY, clock)
    data = mail_data(engine, "welcome")
    assert (data["trial_days"], "trial_end" in data) == (trial_days, trial)
    content = Renderer("https://apexmediation.com").render(mail_type("welcome"), data, name="Ada")
    assert content.subject == subject
    assert ("free for 14 days" in content.html) == trial


def test_check_ins_follow_age_and_are_not_sent_to_who_is_past_them(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    lost, integrated = sign_up(2), sign_up(2)
    tips, showing = sign_up(5), sign_up(5)
    week, silent_week, paying = sign_up(7, trial=True), sign_up(7, trial=True), sign_up(7)
    fill("marts.onboarding", [
        *_steps(integrated, ("first_request", 1)),
        *_steps(showing, ("first_request", 4), ("first_impression", 4)),
        *_steps(week, ("first_request", 5), ("first_impression", 5)),
        *_steps(paying, ("first_request", 5)),
    ])  # fmt: skip
    fill("marts.usage_daily", [{
        "customer_id": week, "usage_date": TODAY - timedelta(days=1), "metric_type": "impressions",
        "quantity": 48_120, "event_count": 9,
    }])  # fmt: skip

    onboarding_triggers(marts, engine, TODAY, clock)

    assert "onboarding_day_2" in mails(engine, lost)
    assert "onboarding_day_2" not in mails(engine, integrated)
    assert mails(engine, tips) == ["onboarding_day_5"]
    assert mails(engine, showing) == []
    assert mails(engine, week) == ["onboarding_day_7", "trial_ending_7"]
    assert mail_data(engine, "onboarding_day_7") == {"figures": [["Impressions", "48,120"]], "days_left": 7}
    assert mails(engine, silent_week) == ["trial_ending_7"]
    assert mails(engine, paying) == []
    assert deliver().failed.total() == 0


def test_trial_reminders_at_seven_three_and_one_day(
    marts: Client, sign_up: SignUp, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(6, trial=True)
    reminded = []
    for day in range(12):
        report = onboarding_triggers(marts, engine, TODAY + timedelta(days=day), clock)
        reminded += [(day, kind) for kind in report.queued if kind.startswith("trial_ending")]
    assert reminded == [(1, "trial_ending_7"), (5, "trial_ending_3"), (7, "trial_ending_1")]
    assert customer


# --- digest -------------------------------------------------------------------------------------------------


def test_digest_has_the_figures_of_yesterday(
    marts: Client, fill: Fill, sign_up: SignUp, engine: sa.Engine, clock: ManualClock,
    deliver: Callable[[], DrainReport],
) -> None:  # fmt: skip
    active = sign_up(plan="studio")
    quiet: dict[str, object] = {
        "digest_date": TODAY - timedelta(days=2), "sign_ups": 0, "sign_ups_by_plan": {}, "integrations": 0,
        "active_customers": 1, "subscriptions_by_status": {"active": 1}, "mrr_cents": {"usd": 49_900},
        "cancellations": 0, "payments_succeeded": 0, "payments_failed": 0, "collected_cents": {},
        "failed_cents": {}, "collected_month_to_date_cents": {}, "revenue_forecast_cents": {},
        "quantities": {"impressions": 11_000}, "error_rate": None,
    }  # fmt: skip
    busy = quiet | {
        "digest_date": TODAY - timedelta(days=1), "sign_ups": 2, "sign_ups_by_plan": {"indie": 1, "none": 1},
        "integrations": 1, "active_customers": 2, "subscriptions_by_status": {"active": 1, "trialing": 1},
        "payments_succeeded": 3, "collected_cents": {"eur": 9_000, "usd": 49_900}, "payments_failed": 1,
        "failed_cents": {"usd": 9_900}, "collected_month_to_date_cents": {"eur": 9_000, "usd": 99_800},
        "revenue_forecast_cents": {"usd": 500_000},
        "quantities": {"impressions": 12_345, "mediated_revenue": 1_234_560_000}, "error_rate": 0.0125,
    }  # fmt: skip
    today = quiet | {"digest_date": TODAY, "sign_ups": 9}
    fill("marts.daily_digest", [quiet, busy, today])
    fill("marts.at_risk_customers", [_at_risk(active)])

    assert daily_digest(marts, engine, TODAY, clock).queued == Counter(daily_digest=1)
    assert daily_digest(marts, engine, TODAY, clock).queued.total() == 0

    data = mail_data(engine, "daily_digest")
    figures = {label: value for section in data["sections"] for label, value in section["figures"]}
    assert data["headline"] == "2 sign-ups, 2 active customers"
    assert figures["Sign-ups yesterday"] == "2"
    assert figures["… on Indie"] == figures["… on no plan"] == "1"
    assert (figures["Active yesterday"], figures["Active the day before"]) == ("2", "1")
    assert figures["Subscriptions active"] == figures["Subscriptions trialing"] == "1"
    assert figures["Impressions"] == "12,345 (day before: 11,000)"
    assert figures["Mediated revenue"] == "$1,234.56 (day before: $0.00)"
    assert figures["SDK errors per API call"] == "1.25%"
    assert figures["Monthly recurring revenue"] == "$499.00"
    assert figures["Succeeded: 3"] == "€90.00, $499.00"
    assert figures["Failed: 1"] == "$99.00"
    assert figures["Collected this month"] == "€90.00, $998.00"
    assert figures["Revenue of the month, forecast"] == "$5,000.00"
    assert figures["At risk: usage drop"] == "1"
    assert deliver().sent == Counter(daily_digest=1)


@pytest.mark.parametrize("day", [TODAY, TODAY + timedelta(days=1)])
def test_digest_of_an_empty_company_is_still_a_mail(
    marts: Client, engine: sa.Engine, clock: ManualClock, deliver: Callable[[], DrainReport], day: date
) -> None:
    daily_digest(marts, engine, day, clock)
    assert deliver().sent == Counter(daily_digest=1)
