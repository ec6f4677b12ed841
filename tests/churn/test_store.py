"""Scores written twice are stored once, and only labels that were known are read."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.churn import store
from tests.churn.marts import churn_marts, fill, no_churn_marts
from tests.ml.churn_worlds import AS_OF, panel, without_truth

DAY = date(2026, 6, 1)
MORNING = datetime(2026, 6, 1, 8, tzinfo=UTC)


def scores(
    probabilities: dict[str, float], *, version: str = "v1", day: date = DAY, at: datetime = MORNING
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "customer_id": list(probabilities),
            "feature_date": [day] * len(probabilities),
            "model_version": [version] * len(probabilities),
            "probability": list(probabilities.values()),
            "expected_profit": [1.5] * len(probabilities),
            "reasons": ['[{"feature": "usage_change_pct", "effect": 0.2}]'] * len(probabilities),
            "holdout": [False] * len(probabilities),
        }
    ).with_columns(scored_at=pl.lit(at).cast(pl.Datetime("us", "UTC")))


def stored(client: Client) -> dict[tuple[date, str, str], float]:
    rows = client.query(
        "select feature_date, model_version, customer_id, probability from ml.churn_scores final"
    ).result_rows
    return {(day, version, customer): probability for day, version, customer, probability in rows}


def test_scoring_a_day_again_replaces_it_and_leaves_other_days_and_models_alone(warehouse: Client) -> None:
    assert store.write_scores(warehouse, scores({"cus_a": 0.2, "cus_b": 0.4, "cus_gone": 0.9})) == 3
    store.write_scores(warehouse, scores({"cus_a": 0.5}, version="v0"))
    store.write_scores(warehouse, scores({"cus_a": 0.6}, day=DAY - timedelta(days=1)))
    again = scores({"cus_a": 0.3, "cus_b": 0.4})
    assert store.write_scores(warehouse, again) == 2
    assert store.write_scores(warehouse, again) == 2
    assert stored(warehouse) == {
        (DAY, "v1", "cus_a"): 0.3,
        (DAY, "v1", "cus_b"): 0.4,
        (DAY, "v0", "cus_a"): 0.5,
        (DAY - timedelta(days=1), "v1", "cus_a"): 0.6,
    }


def test_a_score_keeps_every_column(warehouse: Client) -> None:
    given = scores({"cus_a": 0.2})
    store.write_scores(warehouse, given)
    found = store.latest_scores(warehouse, DAY).with_columns(pl.col("holdout").cast(pl.Boolean))
    assert found.rows() == given.select(found.columns).rows()


def test_the_latest_score_is_of_the_newest_day_not_after_the_date(warehouse: Client) -> None:
    store.write_scores(warehouse, scores({"cus_a": 0.1}, day=DAY - timedelta(days=2)))
    store.write_scores(warehouse, scores({"cus_a": 0.2}, day=DAY - timedelta(days=1)))
    store.write_scores(warehouse, scores({"cus_a": 0.3}, day=DAY))
    found = store.latest_scores(warehouse, DAY - timedelta(days=1))
    assert found["probability"].to_list() == [0.2]


def test_scores_of_two_days_at_once_are_refused_and_none_are_fine(warehouse: Client) -> None:
    mixed = pl.concat([scores({"cus_a": 0.1}), scores({"cus_a": 0.1}, day=DAY - timedelta(days=1))])
    with pytest.raises(ValueError, match="one date and model at a time"):
        store.write_scores(warehouse, mixed)
    assert store.write_scores(warehouse, scores({"cus_a": 0.1}).head(0)) == 0
    assert stored(warehouse) == {}


def test_only_labels_known_by_the_date_are_read_and_prices_come_along(warehouse: Client) -> None:
    world = without_truth(panel(customers=50, dates=6))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    subscription = pl.DataFrame(
        {
            "id": ["sub_1", "sub_2"], "customer_id": [world["customer_id"][0]] * 2,
            "plan_type": ["indie", "studio"], "status": ["canceled", "active"],
            "base_price_cents": [9_900, 49_900], "currency": ["usd"] * 2, "included_impressions": [1, 1],
            "started_at": [at, at + timedelta(days=40)], "current_period_start": [at] * 2,
            "current_period_end": [at + timedelta(days=30)] * 2, "snapshot_at": [at] * 2,
        }
    )  # fmt: skip
    fill(warehouse, "raw.subscriptions", subscription)
    with churn_marts(warehouse, world, world.head(0)):
        everything = store.read_training_frame(warehouse, AS_OF)
        earlier = store.read_training_frame(warehouse, AS_OF - timedelta(days=20))
    assert everything.height == world.height
    assert earlier.height == world.filter(pl.col("label_known_on") <= AS_OF - timedelta(days=20)).height > 0
    both = everything.select(world.columns).sort("feature_date", "customer_id")
    assert both.rows() == world.sort("feature_date", "customer_id").rows()
    prices = dict(everything.select("customer_id", "monthly_price_usd").rows())
    assert prices.pop(world["customer_id"][0]) == 499.0
    assert set(prices.values()) == {None}


def test_above_the_row_limit_whole_customers_are_left_out(warehouse: Client) -> None:
    world = without_truth(panel(customers=400, dates=6))
    with churn_marts(warehouse, world, world.head(0)):
        found = store.read_training_frame(warehouse, AS_OF, max_rows=world.height // 4)
        again = store.read_training_frame(warehouse, AS_OF, max_rows=world.height // 4)
    assert 0.1 < found.height / world.height < 0.4
    kept = world.filter(pl.col("customer_id").is_in(found["customer_id"].unique().implode()))
    assert kept.height == found.height
    assert set(found["customer_id"]) == set(again["customer_id"])


def test_missing_marts_are_named_with_what_to_do(warehouse: Client) -> None:
    with no_churn_marts(warehouse):
        with pytest.raises(store.ChurnInputMissing, match=r"marts\.churn_features does not exist; build the"):
            store.read_training_frame(warehouse, AS_OF)
        with pytest.raises(store.ChurnInputMissing, match="build the marts first"):
            store.read_scoring_frame(warehouse, AS_OF)
