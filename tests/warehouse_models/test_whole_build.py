"""The whole project on a small company: all its tests pass, and a repeat changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apex_pipelines.platform.dbt import dbt_environment
from tests.warehouse_models.conftest import AS_OF, Models

MIDNIGHT = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC)
MARTS = [
    "usage_daily", "usage_hourly", "usage_by_period", "customers", "onboarding", "customer_health",
    "at_risk_customers",
    "segment_membership_daily", "segment_memberships", "churn_features", "churn_labels",
    "invoice_lines", "mrr_movements", "mrr_monthly", "revenue_by_month", "revenue_forecast",
    "cohort_retention",
    "customer_health_daily", "customer_health_components", "growth_loop_candidates", "signup_funnel",
    "daily_digest", "goal_progress",
]  # fmt: skip


def _use(models: Models, customer: str, days: range, impressions: int) -> None:
    models.insert_events([
        {
            "customer_id": customer, "event_id": f"{customer}-{day}", "metric_type": "impressions",
            "quantity": impressions, "event_time": MIDNIGHT - timedelta(days=day),
            "accepted_at": MIDNIGHT - timedelta(days=day),
            "loaded_at": MIDNIGHT, "batch_id": customer, "batch_row": day,
        }
        for day in days
    ])  # fmt: skip


def test_build_passes_and_a_repeat_changes_nothing(models: Models) -> None:
    models.insert_customers(["cus_big", "cus_dropping", "cus_gone"], MIDNIGHT - timedelta(days=100))
    models.insert_customers(["cus_silent"], MIDNIGHT - timedelta(days=8))
    models.insert_subscription(
        "cus_big", MIDNIGHT - timedelta(days=100), plan_type="enterprise", base_price_cents=99_900
    )
    models.insert_subscription("cus_dropping", MIDNIGHT - timedelta(days=100))
    models.insert_subscription("cus_silent", MIDNIGHT - timedelta(days=8))
    left_at = MIDNIGHT - timedelta(days=40)
    models.insert_subscription("cus_gone", MIDNIGHT - timedelta(days=100), cancelled_at=left_at)
    _use(models, "cus_big", range(1, 90), 40_000)
    _use(models, "cus_dropping", range(8, 60), 5_000)
    _use(models, "cus_gone", range(40, 90), 5_000)

    models.run("build")
    rows = {name: models.frame(f"select * from marts.{name}").rows() for name in MARTS}
    assert [name for name, found in rows.items() if not found] == []
    segments = models.client.query("select customer_id, segment from marts.segment_memberships").result_rows
    assert set(segments) == {
        ("cus_big", "power_user"), ("cus_big", "vip"), ("cus_dropping", "at_risk"), ("cus_silent", "at_risk"),
    }  # fmt: skip
    statuses = models.client.query("select customer_id, status from marts.customers").result_rows
    status = {row[0]: row[1] for row in statuses}
    assert status["cus_gone"] == "canceled"
    assert "cus_gone" not in {row[0] for row in rows["customer_health"]}

    models.run("run")
    for name, before in rows.items():
        again = models.frame(f"select * from marts.{name}").rows()
        assert sorted(map(str, again)) == sorted(map(str, before)), name


def test_a_day_run_again_without_members_forgets_the_former(models: Models) -> None:
    models.insert_customers(["cus_vip"], MIDNIGHT - timedelta(days=100))
    models.insert_subscription("cus_vip", MIDNIGHT - timedelta(days=100), base_price_cents=99_900)
    models.build("segment_memberships", as_of=AS_OF)
    models.build("segment_memberships", as_of=AS_OF + timedelta(days=1))
    stays = "select segment, entered_on, left_on from marts.segment_memberships"
    assert models.client.query(stays).result_rows == [("vip", AS_OF, None)]

    models.client.command("truncate table raw.subscriptions")
    models.insert_subscription("cus_vip", MIDNIGHT - timedelta(days=100), base_price_cents=9_900)
    before = models.frame("select * from marts.segment_membership_daily where as_of_date = '2026-06-01'")
    models.build("segment_memberships", as_of=AS_OF + timedelta(days=1))
    assert models.client.query(stays).result_rows == [("vip", AS_OF, AS_OF + timedelta(days=1))]
    after = models.frame("select * from marts.segment_membership_daily where as_of_date = '2026-06-01'")
    assert_frame_equal(after, before)


def test_a_run_counts_up_to_its_instant(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.insert_subscription("cus_new", MIDNIGHT + timedelta(hours=6))
    periods = {}
    for hour in (5, 7):
        for name, value in dbt_environment(MIDNIGHT + timedelta(hours=hour)).items():
            monkeypatch.setenv(name, value)
        models.build("int_billing_periods")
        found = models.client.query("select customer_id from intermediate.int_billing_periods")
        periods[hour] = found.result_rows
    assert periods == {5: [], 7: [("cus_new",)]}


def test_a_table_with_columns_of_an_older_project_is_built_from_nothing_and_a_log_keeps_its_rows(
    models: Models,
) -> None:
    def rows(table: str) -> pl.DataFrame:
        return models.frame(f"select * from {table} order by all").drop("processed_at", strict=False)

    models.insert_customers(["cus_used"], MIDNIGHT - timedelta(days=70))
    models.insert_subscription("cus_used", MIDNIGHT - timedelta(days=70), base_price_cents=99_900)
    _use(models, "cus_used", range(1, 60), 40_000)
    built = ["int_usage_arrivals", "usage_by_period", "segment_membership_daily"]
    models.build(*built)
    before = {name: rows(name) for name in ("intermediate.int_usage_arrivals", "marts.usage_by_period")}

    for table, column in (
        ("intermediate.int_usage_events", "known_on"),
        ("marts.usage_by_period", "is_ended"),
        ("marts.segment_membership_daily", "reason"),
    ):
        models.client.command(f"alter table {table} drop column {column} settings mutations_sync = 2")
    models.build(*built, as_of=AS_OF + timedelta(days=1))
    models.build(*built)

    for name, expected in before.items():
        assert_frame_equal(rows(name), expected)
    logged = models.client.query("select distinct as_of_date from marts.segment_membership_daily order by 1")
    assert logged.result_rows == [(AS_OF,), (AS_OF + timedelta(days=1),)]
