"""Scores say who, why, and what it is worth."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from ml import scoring
from ml.economics import RetentionEconomics
from ml.features import FeatureFrameError, matrix
from ml.gate import Evidence, GateRules, decide
from ml.model_card import model_card
from ml.training import TrainingResult, TrainingSettings, library_versions, train
from tests.ml.churn_worlds import HORIZON, panel, without_truth
from tests.ml.test_registry import metadata_of


@pytest.fixture(scope="module")
def result() -> TrainingResult:
    found = train(without_truth(panel(customers=1500)), TrainingSettings(horizon_days=HORIZON))
    assert isinstance(found, TrainingResult)
    return found


@pytest.fixture(scope="module")
def today() -> pl.DataFrame:
    frame = without_truth(panel(customers=1500, seed=11))
    return frame.filter(pl.col("feature_date") == pl.col("feature_date").max()).drop("churned")


def test_probabilities_are_the_models_own_and_ordered_by_profit(
    result: TrainingResult, today: pl.DataFrame
) -> None:
    scores = scoring.score(result.model, today, RetentionEconomics())
    assert scores.schema == pl.Schema(scoring.SCORES_SCHEMA)
    assert scores["expected_profit"].is_sorted(descending=True)
    expected = today.select("customer_id").with_columns(expected=pl.Series(result.model.probability(today)))
    both = scores.join(expected, on="customer_id")
    assert both.height == today.height
    assert (both["probability"] == both["expected"]).all()


def test_the_feature_that_was_moved_is_the_strongest_reason(
    result: TrainingResult, today: pl.DataFrame
) -> None:
    medians = dict(zip(result.model.features, result.model.medians, strict=True))
    ordinary = today.head(1).with_columns(pl.lit(value).alias(name) for name, value in medians.items())
    struck = ordinary.with_columns(failed_payments_count=pl.lit(4.0))
    unmoved, moved = (
        json.loads(scoring.score(result.model, frame, RetentionEconomics())["reasons"][0])
        for frame in (ordinary, struck)
    )
    assert unmoved == [], "nothing sets an ordinary customer apart"
    assert moved[0]["feature"] == "failed_payments_count"
    assert moved[0]["value"] == 4.0
    assert moved[0]["effect"] > 0.05
    assert len(moved) == 1


def test_effects_are_the_change_of_score_when_one_feature_becomes_ordinary(
    result: TrainingResult, today: pl.DataFrame
) -> None:
    values = matrix(today.head(20), result.model.features)
    effects = scoring.feature_effects(result.model, values)
    replaced = values.copy()
    replaced[:, 1] = result.model.medians[1]
    np.testing.assert_allclose(effects[:, 1], result.model.score(values) - result.model.score(replaced))


def test_a_dearer_customer_of_equal_risk_ranks_higher(result: TrainingResult, today: pl.DataFrame) -> None:
    risky = today.head(1).with_columns(failed_payments_count=pl.lit(4.0), usage_change_pct=pl.lit(-90.0))
    pair = pl.concat([risky, risky.with_columns(customer_id=pl.lit("cus_dear"))])
    pair = pair.with_columns(monthly_price_usd=pl.Series([99.0, 999.0]))
    scores = scoring.score(result.model, pair, RetentionEconomics())
    assert scores["customer_id"].to_list()[0] == "cus_dear"
    assert scores["probability"].n_unique() == 1


def test_unknown_values_and_nobody_to_score_are_fine(result: TrainingResult, today: pl.DataFrame) -> None:
    unknown = today.head(3).with_columns(days_since_last_login=pl.lit(None, dtype=pl.Float64))
    scores = scoring.score(result.model, unknown, RetentionEconomics())
    assert scores["probability"].is_finite().all()
    assert all(isinstance(json.loads(text), list) for text in scores["reasons"])
    assert scoring.score(result.model, today.head(0), RetentionEconomics()).is_empty()


def test_a_missing_feature_is_named(result: TrainingResult, today: pl.DataFrame) -> None:
    with pytest.raises(FeatureFrameError, match="the model needs feature 'usage_change_pct'"):
        scoring.score(result.model, today.drop("usage_change_pct"), RetentionEconomics())


def test_the_model_card_tells_figures_verdict_and_competitors(result: TrainingResult) -> None:
    decision = decide(
        Evidence(
            churned_customers=result.churned_customers,
            test_churned_customers=result.evaluation.churned_customers,
            auc=result.evaluation.auc,
            single_feature_auc=result.single_feature_auc,
        ),
        GateRules(),
    )
    card = model_card(result, metadata_of(result.model.version), decision)
    assert f"| AUC | {result.evaluation.auc.value:.4g} |" in card
    assert "**Gate: promote.**" in card
    assert "| random forest |" in card
    assert library_versions()["scikit-learn"] in card
