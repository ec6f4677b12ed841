"""What churn features know ends before their feature date; labels say what came after it."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

import polars as pl
from polars.testing import assert_frame_equal

from tests.warehouse_models.conftest import Models

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
THEN = date(2026, 4, 20)
MIDNIGHT = datetime(2026, 4, 20, tzinfo=UTC)
CUSTOMERS = [f"cus_{number:032x}" for number in range(8)]


def _event(
    customer: str, number: int, metric: str, quantity: int, at: datetime, loaded: datetime
) -> dict[str, object]:
    return {
        "customer_id": customer, "event_id": f"{customer}-{number}",
        "metric_type": metric, "quantity": quantity, "event_time": at, "accepted_at": at,
        "metadata": '{"feature": "bidding"}', "loaded_at": loaded,
        "batch_id": f"b-{loaded:%Y%m%d%H%M%S}", "batch_row": number,
    }  # fmt: skip


def _history(seed: int, until: datetime) -> list[dict[str, object]]:
    """Days with gaps, of customers of whom some fall silent."""
    chance = random.Random(seed)
    events: list[dict[str, object]] = []
    for index, customer in enumerate(CUSTOMERS):
        silent_after = FIRST_DAY + timedelta(days=20 + 15 * index)
        day = FIRST_DAY
        while day < min(until, silent_after):
            for metric in ("impressions", "api_calls", "sdk_errors", "console_logins", "feature_used"):
                if chance.random() < 0.4:
                    at = day + timedelta(seconds=chance.randrange(86_400))
                    events.append(_event(customer, len(events), metric, chance.randrange(1, 500), at, until))
            day += timedelta(days=1)
    return events


def _insert_payment(models: Models, customer: str, at: datetime) -> None:
    columns: dict[str, object] = {
        "id": f"pay_{customer}_{at:%Y%m%d%H%M%S}", "customer_id": customer, "invoice_id": f"in_{at:%Y%m%d}",
        "attempt_number": 1, "status": "failed", "amount_cents": 9_900, "currency": "usd", "occurred_at": at,
        "snapshot_at": at,
    }  # fmt: skip
    models.client.insert("raw.payments", [list(columns.values())], column_names=list(columns))


def _features(models: Models) -> pl.DataFrame:
    return models.frame(
        "select * from marts.churn_features "
        f"where feature_date <= '{THEN}' order by feature_date, customer_id"
    )


def test_features_of_a_past_date_never_change(models: Models) -> None:
    models.insert_customers(CUSTOMERS, FIRST_DAY)
    for customer in CUSTOMERS:
        models.insert_subscription(customer, FIRST_DAY)
    models.insert_events(_history(3, MIDNIGHT))
    _insert_payment(models, CUSTOMERS[0], MIDNIGHT - timedelta(microseconds=1))
    models.build("churn_features", as_of=THEN)
    then = _features(models)
    assert set(then["feature_date"].to_list()) == {THEN - timedelta(days=14 * back) for back in range(6)}
    newest = then.filter(pl.col("feature_date") == THEN)
    assert newest.height == len(CUSTOMERS)
    assert newest.filter(pl.col("customer_id") == CUSTOMERS[0])["failed_payments_count"].to_list() == [1.0]

    # The future: use from the very midnight on, failed payments, one who leaves and one who changes plan.
    later = datetime(2026, 6, 1, tzinfo=UTC)
    future = [
        _event(customer, 100_000 + number, metric, 10**6, MIDNIGHT + timedelta(days=number), later)
        for customer in CUSTOMERS
        for number, metric in enumerate(["impressions", "sdk_errors", "console_logins", "support_tickets"])
    ]
    models.insert_events(future)
    for customer in CUSTOMERS:
        _insert_payment(models, customer, MIDNIGHT)
    models.client.command("truncate table raw.subscriptions")
    models.insert_subscription(CUSTOMERS[0], FIRST_DAY, cancelled_at=MIDNIGHT)
    models.insert_subscription(CUSTOMERS[1], FIRST_DAY, plan_type="enterprise", base_price_cents=99_900)
    for customer in CUSTOMERS[2:]:
        models.insert_subscription(customer, FIRST_DAY)

    models.build("churn_features", as_of=THEN)
    assert_frame_equal(_features(models), then)
    models.build("churn_features", as_of=THEN + timedelta(days=42))
    assert_frame_equal(_features(models), then)

    # The counter-proof: an event of the day before does change them.
    models.insert_events(
        [_event(CUSTOMERS[0], 200_000, "impressions", 7, MIDNIGHT - timedelta(milliseconds=1), later)]
    )
    models.build("churn_features", as_of=THEN)
    changed = _features(models).filter(pl.col("customer_id") == CUSTOMERS[0], pl.col("feature_date") == THEN)
    before = newest.filter(pl.col("customer_id") == CUSTOMERS[0])
    assert changed["usage_last_30_days"].item() == before["usage_last_30_days"].item() + 7


def test_inactivity_labels_equal_an_independent_computation(models: Models) -> None:
    as_of = date(2026, 5, 10)
    horizon, step = 20, 10
    events = _history(5, MIDNIGHT)
    models.insert_customers(CUSTOMERS, datetime(2026, 5, 1, tzinfo=UTC))  # an import: the account is younger
    models.insert_events(events)
    models.build(
        "churn_labels", as_of=as_of,
        churn_label="inactivity", churn_horizon_days=horizon, churn_feature_step_days=step,
    )  # fmt: skip

    days = pl.DataFrame(events).with_columns(pl.col("event_time").dt.date().alias("day"))
    active = (
        days.filter(pl.col("metric_type") == "impressions")
        .group_by("customer_id", "day")
        .agg(pl.col("quantity").sum())
    )
    first_use = {str(row[0]): row[1] for row in days.group_by("customer_id").agg(pl.col("day").min()).rows()}
    expected = set()
    feature_date = as_of
    while feature_date >= min(first_use.values()) + timedelta(days=30):
        if feature_date + timedelta(days=horizon) <= as_of:
            for customer in CUSTOMERS:
                if first_use[customer] < feature_date:
                    stayed = active.filter(
                        pl.col("customer_id") == customer,
                        pl.col("day") >= feature_date,
                        pl.col("day") < feature_date + timedelta(days=horizon),
                        pl.col("quantity") > 0,
                    ).height
                    expected.add((customer, feature_date, int(stayed == 0)))
        feature_date -= timedelta(days=step)

    labels = models.client.query(
        "select customer_id, feature_date, churned from marts.churn_labels"
    ).result_rows
    assert set(labels) == expected
    assert {churned for _, _, churned in expected} == {0, 1}
