"""Which models may serve, and the words in which the others are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ml.evaluation import Comparison, Interval
from ml.gate import Evidence, GateRules, Verdict, decide
from ml.training import TrainingResult, TrainingSettings, train
from tests.ml.churn_worlds import HORIZON, panel, without_truth

RULES = GateRules()
SOUND = Evidence(
    churned_customers=80,
    test_churned_customers=25,
    auc=Interval(0.75, 0.68, 0.82),
    single_feature_auc={"usage_change_pct": 0.66, "api_error_rate": 0.51},
)
BETTER = Comparison(
    rows=900,
    churned_customers=30,
    champion_auc=0.70,
    candidate_auc=0.75,
    auc_gain=Interval(0.05, 0.01, 0.09),
    brier_gain=Interval(0.001, -0.001, 0.003),
)


def test_a_first_model_above_chance_is_promoted() -> None:
    decision = decide(SOUND, RULES)
    assert decision.promote
    assert "above chance" in decision.reasons[0]


@pytest.mark.parametrize("low", [0.5, 0.41, float("nan")])
def test_a_first_model_that_may_be_chance_is_refused(low: float) -> None:
    decision = decide(replace(SOUND, auc=Interval(0.6, low, 0.7)), RULES)
    assert decision.verdict is Verdict.REFUSE
    assert "may be chance" in decision.reasons[0]


def test_too_few_events_are_refused_with_both_numbers() -> None:
    decision = decide(replace(SOUND, churned_customers=39), RULES)
    assert decision.verdict is Verdict.REFUSE
    assert decision.reasons == ("Too few events: 39 customers left, 40 are needed.",)
    assert decide(replace(SOUND, churned_customers=39), GateRules(min_events=39)).promote


def test_a_challenger_must_beat_the_champion_beyond_noise() -> None:
    assert decide(replace(SOUND, comparison=BETTER), RULES).promote
    noise = replace(BETTER, auc_gain=Interval(0.02, -0.01, 0.05))
    decision = decide(replace(SOUND, comparison=noise), RULES)
    assert decision.verdict is Verdict.KEEP_CHAMPION
    assert "Not better beyond noise" in decision.reasons[0]


def test_a_better_order_with_worse_probabilities_is_not_promoted() -> None:
    worse = replace(BETTER, brier_gain=Interval(-0.01, -0.02, -0.005))
    assert decide(replace(SOUND, comparison=worse), RULES).verdict is Verdict.KEEP_CHAMPION


def test_no_fair_comparison_keeps_the_champion() -> None:
    decision = decide(replace(SOUND, comparison_impossible_because="no news rows"), RULES)
    assert decision.verdict is Verdict.KEEP_CHAMPION
    assert "no news rows" in decision.reasons[0]


def test_a_too_good_model_is_refused_even_when_it_beats_the_champion() -> None:
    decision = decide(replace(SOUND, auc=Interval(0.99, 0.98, 1.0), comparison=BETTER), RULES)
    assert decision.verdict is Verdict.REFUSE
    assert "Leakage alarm: test AUC 0.990" in decision.reasons[0]


def evidence_of(frame: pl.DataFrame) -> Evidence:
    result = train(frame, TrainingSettings(horizon_days=HORIZON))
    assert isinstance(result, TrainingResult)
    return Evidence(
        churned_customers=result.churned_customers,
        test_churned_customers=result.evaluation.churned_customers,
        auc=result.evaluation.auc,
        single_feature_auc=result.single_feature_auc,
    )


@pytest.mark.parametrize("form", ["use after the feature date", "filled in only for leavers"])
def test_a_planted_leak_is_caught_and_named_and_the_same_data_without_it_passes(form: str) -> None:
    honest = without_truth(panel(customers=900))
    noise = pl.Series(np.random.default_rng(4).normal(0, 0.05, honest.height))
    if form == "use after the feature date":
        leak = (1.0 - pl.col("churned").cast(pl.Float64) + noise).alias("sessions_ahead")
    else:
        leak = pl.when(pl.col("churned") == 1).then(3.0 + noise).alias("sessions_ahead")
    assert decide(evidence_of(honest), RULES).promote
    decision = decide(evidence_of(honest.with_columns(leak)), RULES)
    assert decision.verdict is Verdict.REFUSE
    assert "'sessions_ahead' alone tells leavers from stayers" in decision.reasons[0]
