"""Training finds what is true, says so when there is nothing to find, and does the same twice."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ml import evaluation
from ml.model import Algorithm
from ml.training import NotEnoughEvents, TrainingResult, TrainingSettings, train
from tests.ml.churn_worlds import AS_OF, HORIZON, minimal, panel, without_truth

SETTINGS = TrainingSettings(horizon_days=HORIZON)


@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    return panel(customers=2500)


@pytest.fixture(scope="module")
def result(world: pl.DataFrame) -> TrainingResult:
    found = train(without_truth(world), SETTINGS)
    assert isinstance(found, TrainingResult)
    return found


def test_the_interval_holds_the_auc_that_the_truth_allows_and_probabilities_are_calibrated(
    world: pl.DataFrame, result: TrainingResult
) -> None:
    truth = world.join(result.test.select("customer_id", "feature_date"), on=["customer_id", "feature_date"])
    possible = evaluation.auc(truth["churned"].to_numpy().astype(np.int64), truth["truth"].to_numpy())
    assert result.evaluation.auc.low <= possible <= result.evaluation.auc.high + 0.02
    assert result.evaluation.auc.value <= possible + 0.01, "nobody beats the truth"
    assert result.evaluation.ece.value < 0.02
    assert result.evaluation.brier_skill.low > 0
    assert result.evaluation.top_decile_lift.low > 1.5


def test_the_forest_and_its_two_challengers_all_competed_and_one_was_chosen(result: TrainingResult) -> None:
    assert {candidate.algorithm for candidate in result.candidates} == set(Algorithm)
    assert sum(candidate.chosen for candidate in result.candidates) == 1
    forest = next(item for item in result.candidates if item.algorithm is Algorithm.RANDOM_FOREST)
    chosen = next(item for item in result.candidates if item.chosen)
    assert chosen is forest or chosen.auc > forest.auc + SETTINGS.baseline_margin


def test_every_calibrated_row_was_predicted_from_its_past(result: TrainingResult) -> None:
    assert all(fold.origin < result.split.test_start for fold in result.split.folds)
    assert result.labels_known_until == result.split.test_start
    assert result.data_until == AS_OF


def test_the_same_rows_in_another_order_give_the_same_model_to_the_last_bit(
    world: pl.DataFrame, result: TrainingResult
) -> None:
    again = train(without_truth(world).sample(fraction=1, shuffle=True, seed=3), SETTINGS)
    assert isinstance(again, TrainingResult)
    assert again.model.version == result.model.version
    assert again.test_probability.tobytes() == result.test_probability.tobytes()
    assert again.evaluation == result.evaluation


def test_one_changed_label_gives_another_version(world: pl.DataFrame, result: TrainingResult) -> None:
    flipped = without_truth(world).with_row_index().with_columns(
        churned=pl.when(pl.col("index") == 5).then(1 - pl.col("churned")).otherwise(pl.col("churned"))
    ).drop("index")  # fmt: skip
    again = train(flipped, SETTINGS)
    assert isinstance(again, TrainingResult)
    assert again.model.version != result.model.version


def test_constant_features_are_left_out_and_named() -> None:
    found = train(without_truth(panel(usage_only=True)), SETTINGS)
    assert isinstance(found, TrainingResult)
    assert "api_error_rate" not in found.model.features
    assert "usage_last_30_days" in found.model.features
    assert any("constant" in note and "feature_usage_score" in note for note in found.notes)


def test_unknown_values_are_learned_from_as_they_are() -> None:
    frame = without_truth(panel()).with_columns(
        days_since_last_login=pl.when(pl.col("days_since_last_login") < 6).then(
            pl.col("days_since_last_login")
        ),
        api_error_rate=pl.lit(None, dtype=pl.Float64),
    )
    found = train(frame, SETTINGS)
    assert isinstance(found, TrainingResult)
    assert found.evaluation.auc.low > 0.6
    assert "api_error_rate" not in found.model.features, "a column without any value teaches nothing"
    assert np.isfinite(found.model.medians).all()


def test_labels_that_are_chance_are_not_foreseen() -> None:
    found = train(without_truth(panel(strength=0.0, base_log_odds=-2.5, customers=600)), SETTINGS)
    assert isinstance(found, TrainingResult)
    assert found.evaluation.auc.low < 0.5 + 0.03


def test_too_few_events_are_told_in_words_not_raised() -> None:
    found = train(without_truth(panel(customers=60, dates=10)), SETTINGS)
    assert isinstance(found, NotEnoughEvents)
    assert "a model needs at least 40 of each" in found.message
    assert "health score serves instead" in found.message


@pytest.mark.parametrize("churned", [[], [0] * 50, [1] * 50])
def test_one_class_or_no_rows_is_told_in_words(churned: list[int]) -> None:
    frame = minimal(len(churned), churned).with_columns(
        pl.col("churned").cast(pl.UInt8), pl.col("feature_date").cast(pl.Date)
    )
    assert isinstance(train(frame, SETTINGS), NotEnoughEvents)


def test_many_events_on_too_short_a_history_are_told_in_words() -> None:
    frame = without_truth(panel(customers=2000, dates=3))
    found = train(frame, SETTINGS)
    assert isinstance(found, NotEnoughEvents)
    assert "too short" in found.message


def test_above_the_row_limit_customers_are_sampled_for_fitting_but_all_test_rows_are_tested() -> None:
    frame = without_truth(panel(customers=2500))
    found = train(frame, TrainingSettings(horizon_days=HORIZON, max_fit_rows=5000))
    assert isinstance(found, TrainingResult)
    assert 3500 < found.fitted_rows < 6500
    assert found.evaluation.rows == len(found.split.test)
    assert "max_fit_rows=5,000" in found.notes[0]


@pytest.mark.measures
def test_six_thousand_rows_train_within_twenty_seconds() -> None:
    frame = without_truth(panel(customers=620))
    assert 5500 < frame.height < 7500
    began = time.perf_counter()
    assert isinstance(train(frame, SETTINGS), TrainingResult)
    assert time.perf_counter() - began < 20


def test_a_price_is_no_feature(world: pl.DataFrame) -> None:
    frame = without_truth(world).with_columns(
        monthly_price_usd=pl.lit(99.0), label_known_on=pl.col("feature_date") + timedelta(days=HORIZON)
    )
    found = train(frame, SETTINGS)
    assert isinstance(found, TrainingResult)
    assert "monthly_price_usd" not in found.model.features
    assert "label_known_on" not in found.model.features
