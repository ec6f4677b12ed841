"""The metrics agree with scikit-learn, and the intervals mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ml import evaluation
from ml.drift import psi, reference
from ml.economics import RetentionEconomics
from ml.plots import performance_png


def world(rows: int, seed: int = 1, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probability = generator.beta(1, 8, rows)
    if ties:
        probability = np.round(probability, 1)
    return (generator.random(rows) < probability).astype(np.int64), probability


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_scikit_learn_also_with_ties(ties: bool) -> None:
    churned, probability = world(3000, ties=ties)
    codes = np.arange(3000)
    found = evaluation.evaluate(churned, probability, codes, np.zeros(3000), replicates=20)
    assert found.auc.value == pytest.approx(roc_auc_score(churned, probability))
    assert found.average_precision.value == pytest.approx(average_precision_score(churned, probability))
    assert found.brier.value == pytest.approx(brier_score_loss(churned, probability))


def test_probabilities_that_are_the_truth_are_calibrated_and_shifted_ones_are_not() -> None:
    churned, probability = world(40_000)
    codes, nothing = np.arange(40_000), np.zeros(40_000)
    honest = evaluation.evaluate(churned, probability, codes, nothing, replicates=20)
    shifted = evaluation.evaluate(churned, probability + 0.15, codes, nothing, replicates=20)
    assert honest.ece.value < 0.01
    assert shifted.ece.value == pytest.approx(0.15, abs=0.01)
    assert honest.brier_skill.value > 0 > shifted.brier_skill.value


def test_lift_of_a_perfect_order_is_one_over_the_base_rate_capped_at_ten() -> None:
    churned = np.r_[np.ones(50, dtype=np.int64), np.zeros(950, dtype=np.int64)]
    found = evaluation.evaluate(
        churned, np.linspace(1, 0, 1000), np.arange(1000), np.zeros(1000), replicates=5
    )
    assert found.top_decile_lift.value == pytest.approx(10)
    flat = evaluation.evaluate(churned, np.full(1000, 0.05), np.arange(1000), np.zeros(1000), replicates=5)
    assert flat.top_decile_lift.value == pytest.approx(1), "equal probabilities have no order to profit from"


def test_repeating_each_customer_ten_times_does_not_narrow_the_interval() -> None:
    churned, probability = world(400, seed=3)
    once = evaluation.evaluate(churned, probability, np.arange(400), np.zeros(400)).auc
    again = evaluation.evaluate(
        np.tile(churned, 10), np.tile(probability, 10), np.tile(np.arange(400), 10), np.zeros(4000)
    ).auc
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = roc_auc_score(*world(400_000, seed=99))
    covered = 0
    for seed in range(60):
        churned, probability = world(500, seed=seed)
        found = evaluation.evaluate(churned, probability, np.arange(500), np.zeros(500), replicates=150).auc
        covered += found.low <= truth <= found.high
    assert covered >= 51, f"a 95 % interval covered the truth {covered} times of 60"


def test_a_paired_comparison_sees_a_gain_that_separate_intervals_would_not() -> None:
    churned, probability = world(1500, seed=5)
    noisy = probability + np.random.default_rng(6).normal(0, 0.06, 1500)
    gain = evaluation.compare(churned, noisy, probability, np.arange(1500)).auc_gain
    assert gain.low > 0
    same = evaluation.compare(churned, probability, probability, np.arange(1500)).auc_gain
    assert (same.low, same.high) == (0, 0)


def test_one_class_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="both classes"):
        evaluation.evaluate(
            np.zeros(5, dtype=np.int64), np.linspace(0, 1, 5), np.arange(5), np.zeros(5), replicates=5
        )


def test_profit_mails_only_those_worth_it_and_unknown_prices_take_the_default() -> None:
    economics = RetentionEconomics()
    worth = economics.expected_profit(np.array([0.9, 0.01]), np.array([np.nan, 499.0]))
    assert worth[0] > 0 > worth[1]
    assert worth[0] == economics.expected_profit(np.array([0.9]), np.array([99.0]))[0]
    realised = economics.realised_profit(np.array([1, 1]), np.array([0.9, 0.01]), np.array([99.0, 99.0]))
    assert realised[0] > 0
    assert realised[1] == 0, "nobody writes to the second, so nothing is won or lost"


def test_the_plot_is_a_png() -> None:
    churned, probability = world(800)
    found = evaluation.evaluate(churned, probability, np.arange(800), np.zeros(800), replicates=10)
    picture = performance_png(evaluation.curves(churned, probability), found, "Churn model")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_drift_is_small_for_the_same_population_and_large_for_another() -> None:
    generator = np.random.default_rng(2)
    before = np.column_stack([generator.normal(size=5000), np.zeros(5000)])
    before[:500, 1] = np.nan
    kept = reference(before, ("usage", "logins"))
    same = np.column_stack([generator.normal(size=5000), np.r_[np.full(500, np.nan), np.zeros(4500)]])
    moved = np.column_stack([generator.normal(1, 1, 5000), np.full(5000, np.nan)])
    assert max(psi(kept, same, ("usage", "logins")).values()) < 0.02
    found = psi(kept, moved, ("usage", "logins"))
    assert found["usage"] > 0.25
    assert found["logins"] > 0.25, "a feature that has become unknown is drift too"
