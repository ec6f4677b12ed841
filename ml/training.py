"""Trains, selects, calibrates and tests a churn model on one labelled frame.

Belongs here: the recipe. Does not belong here: whether its result is put to work (`ml.gate`).

The recipe: hold out the latest dates as the test; in what is left, roll the origin forward, let every
algorithm predict each fold from the past alone, and keep the best by AUC; calibrate it on those later-fold
predictions; refit it on all labels known when the test begins; judge it on the test once.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import sha256

import joblib
import numpy as np
import polars as pl
import sklearn

from ml import evaluation
from ml.drift import FeatureReference, reference
from ml.economics import RetentionEconomics
from ml.evaluation import Curves, Evaluation
from ml.features import (
    KEYS,
    PRICE,
    BoolArray,
    FloatArray,
    IntArray,
    customer_codes,
    customer_share,
    feature_dates,
    feature_names,
    in_canonical_order,
    labels,
    matrix,
)
from ml.model import Algorithm, ChurnModel, estimator_score, fit, fit_calibrator
from ml.splits import FinalSplit, Fold, final_split


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    horizon_days : days that a label looks ahead.
    min_events : customers who left (and who stayed) that training needs.
    test_share : share of the churn events that the held-out latest dates should hold.
    max_fit_rows : most rows that an estimator is fitted on; above it, customers are sampled. The test rows
        are never sampled.
    isotonic_from_events : calibration rows of the rarer class from which isotonic beats sigmoid.
    baseline_margin : AUC by which a challenger must beat the forest on the folds to be chosen.
    """

    horizon_days: int
    min_events: int = 40
    test_share: float = 0.25
    max_folds: int = 4
    max_fit_rows: int = 60_000
    isotonic_from_events: int = 500
    baseline_margin: float = 0.005
    jobs: int = 2
    economics: RetentionEconomics = field(default_factory=RetentionEconomics)


@dataclass(frozen=True)
class NotEnoughEvents:
    """No model can be trained honestly; `message` says why, in words. The health score serves instead."""

    churned_customers: int
    needed: int
    message: str


@dataclass(frozen=True)
class CandidateResult:
    """How one algorithm did on the rolling folds (means weighted by each fold's events)."""

    algorithm: Algorithm
    auc: float
    average_precision: float
    chosen: bool


@dataclass(frozen=True)
class TrainingResult:
    """A tested model and all that is worth knowing about how it came about.

    Attributes
    ----------
    test : the held-out rows, in canonical order; `test_probability` belongs to them row by row.
    labels_known_until : the model knows nothing of this day or later; another model's rows from here on
        are news to it.
    notes : what a reader must be told: sampled customers, dropped columns.
    """

    model: ChurnModel
    evaluation: Evaluation
    curves: Curves
    candidates: tuple[CandidateResult, ...]
    single_feature_auc: dict[str, float]
    test: pl.DataFrame
    test_probability: FloatArray
    split: FinalSplit
    rows: int
    fitted_rows: int
    customers: int
    churned_customers: int
    data_from: date
    data_until: date
    labels_known_until: date
    drift_reference: tuple[FeatureReference, ...]
    notes: tuple[str, ...]


def train(frame: pl.DataFrame, settings: TrainingSettings) -> TrainingResult | NotEnoughEvents:
    """Train on a frame of customer_id, feature_date, features and `churned`.

    The result depends on the rows' content alone, not on their order.

    Raises
    ------
    ml.features.FeatureFrameError
        If the frame is malformed; too few events are no error but a `NotEnoughEvents`.
    """
    frame = in_canonical_order(frame)
    offered = feature_names(frame)
    churned = labels(frame)
    leavers = frame.filter(pl.Series(churned == 1))["customer_id"].n_unique()
    stayers = frame.filter(pl.Series(churned == 0))["customer_id"].n_unique()
    if min(leavers, stayers) < settings.min_events:
        return NotEnoughEvents(leavers, settings.min_events, _too_few(frame, leavers, stayers, settings))
    dates = feature_dates(frame)
    split = final_split(
        dates,
        churned,
        horizon_days=settings.horizon_days,
        test_share=settings.test_share,
        max_folds=settings.max_folds,
    )
    if split is None:
        return NotEnoughEvents(leavers, settings.min_events, _too_short(frame, settings))

    notes: list[str] = []
    sampled = _sampled_rows(frame, split.development, settings.max_fit_rows, notes)
    development = split.development[sampled[split.development]]
    values = matrix(frame, offered)
    test = frame[split.test.tolist()]
    content = _content_digest(frame)
    customers = frame["customer_id"].n_unique()
    frame = frame.select(KEYS)  # the matrix holds the features now; twice would not fit for long
    # The alarm looks at every feature offered, also at those that the model will not be given.
    alone = evaluation.single_feature_aucs(churned[split.test], values[split.test], offered)
    names = _varying(offered, values[development], notes)
    if names != offered:
        values = values[:, [offered.index(name) for name in names]]
    if not names or not 0 < int(churned[development].sum()) < len(development):
        return NotEnoughEvents(leavers, settings.min_events, _too_short(frame, settings))

    # A fold's test rows stay whole; only what is fitted is sampled.
    folds = [Fold(fold.origin, fold.train[sampled[fold.train]], fold.test) for fold in split.folds]
    predicted = {
        algorithm: [_predict_fold(algorithm, values, churned, fold, settings.jobs) for fold in folds]
        for algorithm in Algorithm
    }
    candidates = _select(predicted, churned, folds, settings.baseline_margin)
    algorithm = next(candidate.algorithm for candidate in candidates if candidate.chosen)
    calibration_rows = np.concatenate([fold.test for fold in folds])
    calibrator = fit_calibrator(
        np.concatenate(predicted[algorithm]),
        churned[calibration_rows],
        isotonic_from_events=settings.isotonic_from_events,
    )
    estimator = fit(algorithm, values[development], churned[development], jobs=settings.jobs)
    medians = np.nanmedian(values[development], axis=0)
    unnamed = ChurnModel("", algorithm, names, medians, estimator, calibrator)
    probability = unnamed.calibrator.apply(unnamed.score(values[split.test]))
    version = _version(content, probability, algorithm, split)
    profit = settings.economics.realised_profit(churned[split.test], probability, prices(test))
    return TrainingResult(
        model=ChurnModel(version, algorithm, names, medians, estimator, calibrator),
        evaluation=evaluation.evaluate(churned[split.test], probability, customer_codes(test), profit),
        curves=evaluation.curves(churned[split.test], probability),
        candidates=candidates,
        single_feature_auc=alone,
        test=test,
        test_probability=probability,
        split=split,
        rows=frame.height,
        fitted_rows=len(development),
        customers=customers,
        churned_customers=leavers,
        data_from=dates[0].astype(object),
        data_until=dates[-1].astype(object) + timedelta(days=settings.horizon_days),
        labels_known_until=split.test_start,
        drift_reference=reference(values[development], names),
        notes=tuple(notes),
    )


def prices(frame: pl.DataFrame) -> FloatArray:
    """Monthly price per row in USD; NaN where the frame does not know it."""
    if PRICE not in frame.columns:
        return np.full(frame.height, np.nan)
    return frame[PRICE].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def library_versions() -> dict[str, str]:
    """Versions that a stored model depends on."""
    return {
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
        "joblib": joblib.__version__,
    }


def _predict_fold(
    algorithm: Algorithm, values: FloatArray, churned: IntArray, fold: Fold, jobs: int
) -> FloatArray:
    past = churned[fold.train]
    if past.min() == past.max():  # sampling customers can empty an early fold of a rare class
        return np.full(len(fold.test), float(past.mean()))
    return estimator_score(fit(algorithm, values[fold.train], past, jobs=jobs), values[fold.test])


def _select(
    predicted: dict[Algorithm, list[FloatArray]], churned: IntArray, folds: list[Fold], margin: float
) -> tuple[CandidateResult, ...]:
    weights = [int(churned[fold.test].sum()) for fold in folds]
    figures = {}
    for algorithm, scores in predicted.items():
        pairs = list(zip(folds, scores, strict=True))
        aucs = [evaluation.auc(churned[fold.test], score) for fold, score in pairs]
        precisions = [evaluation.average_precision(churned[fold.test], score) for fold, score in pairs]
        figures[algorithm] = (
            float(np.average(aucs, weights=weights)),
            float(np.average(precisions, weights=weights)),
        )
    best = max(figures, key=lambda algorithm: figures[algorithm][0])
    baseline = Algorithm.RANDOM_FOREST
    chosen = best if figures[best][0] > figures[baseline][0] + margin else baseline
    return tuple(
        CandidateResult(algorithm, *figures[algorithm], chosen=algorithm is chosen) for algorithm in figures
    )


def _sampled_rows(frame: pl.DataFrame, development: IntArray, most: int, notes: list[str]) -> BoolArray:
    """Mask over all rows: those whose customer is in the sample that estimators are fitted on."""
    if len(development) <= most:
        return np.ones(frame.height, dtype=np.bool_)
    share = most / len(development)
    customers = frame["customer_id"].unique(maintain_order=True)
    chosen = [customer for customer in customers if customer_share(customer, "fit") < share]
    notes.append(
        f"estimators were fitted on the rows of {len(chosen):,} of {customers.len():,} customers, drawn at "
        f"random, because {len(development):,} labelled rows exceed max_fit_rows={most:,}; "
        "all rows of the test dates were tested"
    )
    return frame["customer_id"].is_in(pl.Series(chosen).implode()).to_numpy()


def _varying(names: tuple[str, ...], values: FloatArray, notes: list[str]) -> tuple[str, ...]:
    """Features that can tell two training rows apart (a value or its absence differs)."""
    kept = []
    for index, name in enumerate(names):
        column = values[:, index]
        unknown = np.isnan(column)
        known = column[~unknown]
        # A column without a single value has no median to explain reasons by, and nothing to learn from.
        if len(known) and (known.min() < known.max() or unknown.any()):
            kept.append(name)
    dropped = [name for name in names if name not in kept]
    if dropped:
        notes.append(f"left out, being constant in the training rows: {', '.join(dropped)}")
    return tuple(kept)


def _content_digest(frame: pl.DataFrame) -> bytes:
    digest = sha256()
    for name in sorted(frame.columns):
        column = frame[name]
        digest.update(f"{name}:{column.dtype}".encode())
        if column.dtype == pl.String:
            digest.update("\n".join(value or "" for value in column).encode())
        else:
            digest.update(column.cast(pl.Float64).fill_null(float("nan")).to_numpy().tobytes())
    return digest.digest()


def _version(content: bytes, probability: FloatArray, algorithm: Algorithm, split: FinalSplit) -> str:
    digest = sha256(content)
    digest.update(np.round(probability, 6).tobytes())
    digest.update("".join(f"{name}={version}" for name, version in library_versions().items()).encode())
    return f"{split.test_start:%Y%m%d}-{algorithm.value}-{digest.hexdigest()[:12]}"


def _too_few(frame: pl.DataFrame, leavers: int, stayers: int, settings: TrainingSettings) -> str:
    return (
        f"{leavers} customers who left and {stayers} who stayed are known in {frame.height} labelled rows; "
        f"a model needs at least {settings.min_events} of each. The health score serves instead."
    )


def _too_short(frame: pl.DataFrame, settings: TrainingSettings) -> str:
    moments = feature_dates(frame)
    return (
        f"the labelled feature dates run from {moments[0]} to {moments[-1]}: too short to train, calibrate "
        "and test one after the other, with churn in each part and labels that look "
        f"{settings.horizon_days} days ahead. The health score serves instead."
    )
