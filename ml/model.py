"""A trained model as it is stored and served: an estimator, a calibrator, and what it must be fed.

Belongs here: turning a matrix into probabilities, and the estimators that compete.
Does not belong here: fitting on folds (`ml.training`), files (`ml.registry`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from ml.features import FloatArray, IntArray, matrix

SEED = 42
LEAST_PROBABILITY = 1e-4  # a forest says exactly 0 for rows that no leaver ever resembled; log-odds need less
CHUNK_ROWS = 50_000


class Algorithm(StrEnum):
    """Who competes. The forest is the given baseline; the others challenge it."""

    RANDOM_FOREST = "random_forest"
    LOGISTIC_REGRESSION = "logistic_regression"
    GRADIENT_BOOSTING = "gradient_boosting"


class Calibrator(Protocol):
    """Maps an estimator's score to a probability, never turning the order around."""

    @property
    def method(self) -> str: ...

    def apply(self, score: FloatArray) -> FloatArray: ...


@dataclass(frozen=True)
class SigmoidCalibrator:
    """Platt's two parameters, on the log-odds of the score."""

    slope: float
    intercept: float
    method: str = "sigmoid"

    def apply(self, score: FloatArray) -> FloatArray:
        odds: FloatArray = np.exp(self.slope * _log_odds(score) + self.intercept)
        return odds / (1 + odds)


@dataclass(frozen=True)
class IsotonicCalibrator:
    """Points of a rising step function, read by linear interpolation."""

    score: FloatArray
    probability: FloatArray
    method: str = "isotonic"

    def apply(self, score: FloatArray) -> FloatArray:
        return np.interp(score, self.score, self.probability)


@dataclass(frozen=True)
class ChurnModel:
    """What is stored and served.

    Attributes
    ----------
    version : names the training data and what came of it; the same data gives the same version.
    features : columns that the frame must have, in the estimator's order.
    medians : shape (features,); of the training rows, the "ordinary customer" that reasons compare with.
    """

    version: str
    algorithm: Algorithm
    features: tuple[str, ...]
    medians: FloatArray
    estimator: Any
    calibrator: Calibrator

    def score(self, values: FloatArray) -> FloatArray:
        """The estimator's own score in [0, 1], before calibration; shape (rows,)."""
        return estimator_score(self.estimator, values)

    def probability(self, frame: pl.DataFrame) -> FloatArray:
        """Calibrated probability per row of the frame.

        Raises
        ------
        ml.features.FeatureFrameError
            If the frame lacks one of the model's features.
        """
        return self.calibrator.apply(self.score(matrix(frame, self.features)))


def signed_log(values: FloatArray) -> FloatArray:
    """log(1 + |x|) with the sign of x: usage spans six orders of magnitude. Public because it is pickled."""
    logs: FloatArray = np.sign(values) * np.log1p(np.abs(values))
    return logs


def new_estimator(algorithm: Algorithm, *, jobs: int) -> Any:
    """An unfitted estimator. None reweights the classes: that leaves the order alone and ruins calibration.

    Leaves of at least 20 rows: one customer stands in many rows, and full-grown trees would learn customers
    by heart (and weigh hundreds of megabytes).
    """
    match algorithm:
        case Algorithm.RANDOM_FOREST:
            return RandomForestClassifier(
                n_estimators=100, min_samples_leaf=20, random_state=SEED, n_jobs=jobs
            )
        case Algorithm.LOGISTIC_REGRESSION:
            return make_pipeline(
                SimpleImputer(strategy="median", keep_empty_features=True),
                FunctionTransformer(signed_log),
                StandardScaler(),
                LogisticRegression(C=1.0, max_iter=1000),
            )
        case Algorithm.GRADIENT_BOOSTING:
            return HistGradientBoostingClassifier(
                max_iter=100,
                learning_rate=0.05,
                max_leaf_nodes=15,
                min_samples_leaf=20,
                l2_regularization=1.0,
                early_stopping=False,
                random_state=SEED,
            )


def fit(algorithm: Algorithm, values: FloatArray, churned: IntArray, *, jobs: int) -> Any:
    """A fitted estimator that predicts the same to the last bit each time."""
    estimator = new_estimator(algorithm, jobs=jobs)
    with _one_thread():
        estimator.fit(values, churned)
    if algorithm is Algorithm.RANDOM_FOREST:
        estimator.set_params(n_jobs=1)  # threads add up the trees in any order, and float sums depend on it
    return estimator


def estimator_score(estimator: Any, values: FloatArray) -> FloatArray:
    """A fitted estimator's probability of leaving, before calibration; shape (rows,)."""
    with _one_thread():
        parts = [
            estimator.predict_proba(values[start : start + CHUNK_ROWS])[:, 1]
            for start in range(0, len(values), CHUNK_ROWS)
        ]
    return np.concatenate(parts) if parts else np.empty(0)


def fit_calibrator(score: FloatArray, churned: IntArray, *, isotonic_from_events: int) -> Calibrator:
    """Isotonic when both classes have at least `isotonic_from_events` rows, else sigmoid.

    A sigmoid that would turn the order around (a score without any skill) becomes the base rate for all.
    """
    leavers = int(churned.sum())
    if min(leavers, len(churned) - leavers) >= isotonic_from_events:
        fitted = IsotonicRegression(y_min=LEAST_PROBABILITY, y_max=1 - LEAST_PROBABILITY)
        fitted.fit(score, churned)
        return IsotonicCalibrator(fitted.X_thresholds_, fitted.y_thresholds_)
    platt = LogisticRegression(C=1e6, max_iter=1000).fit(_log_odds(score)[:, None], churned)
    slope, intercept = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    if slope <= 0:
        base = float(churned.mean())
        return SigmoidCalibrator(0.0, float(np.log(base / (1 - base))))
    return SigmoidCalibrator(slope, intercept)


def _one_thread() -> AbstractContextManager[Any]:
    """Keep OpenMP and BLAS to one thread: the same sums on every machine, and no spinning on a busy one.

    The forest's own workers (`jobs`) are not touched by this.
    """
    limit: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limit


def _log_odds(score: FloatArray) -> FloatArray:
    inside = np.clip(score, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds: FloatArray = np.log(inside / (1 - inside))
    return odds
