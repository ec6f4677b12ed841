"""Time splits in which a model never sees a label that was not known yet.

Belongs here: which rows may train, calibrate and test at which origin.
Does not belong here: what is fitted on them.

The rule everywhere: a row's label covers [feature_date, feature_date + horizon), so the row may be learned
from at an origin only if feature_date + horizon <= origin. What lies between is the embargo: used by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from ml.features import BoolArray, IntArray

Dates = NDArray[np.datetime64]


@dataclass(frozen=True)
class Fold:
    """Row numbers of one origin: learn from `train`, predict `test`, whose dates start at `origin`."""

    origin: date
    train: IntArray
    test: IntArray


@dataclass(frozen=True)
class FinalSplit:
    """Latest rows held out as the test; before it, rolling folds that select and calibrate.

    Attributes
    ----------
    development : row numbers whose label was known at `test_start`; the served model is fitted on these.
    folds : rolling origins inside the development rows; their test rows are the calibration fold, each
        predicted by a model that was fitted before it.
    test : row numbers at or after `test_start`.
    embargoed : rows that nobody may use, because their label was open at `test_start`.
    """

    test_start: date
    development: IntArray
    folds: tuple[Fold, ...]
    test: IntArray
    embargoed: int


def known_by(dates: Dates, origin: np.datetime64, horizon_days: int) -> BoolArray:
    """Mask of the rows whose label was known at the origin."""
    return dates + np.timedelta64(horizon_days, "D") <= origin


def rolling_folds(
    dates: Dates,
    labels: IntArray,
    rows: IntArray,
    *,
    horizon_days: int,
    max_folds: int = 4,
    min_train_share: float = 0.2,
) -> tuple[Fold, ...]:
    """Folds with a rolling origin among the given rows, oldest first; the training part grows.

    Every fold has both classes in both parts. Early origins that could learn from less than
    `min_train_share` of the rows are left out when there are later ones.

    Returns
    -------
    tuple of Fold
        Empty when no origin has known labels of both classes before it and both classes after it.
    """
    moments, values = dates[rows], labels[rows]
    origins = []
    for origin in np.unique(moments):
        past = known_by(moments, origin, horizon_days)
        if _both_classes(values[past]):
            origins.append((origin, float(past.mean())))
    enough = [origin for origin, share in origins if share >= min_train_share]
    candidates = enough or [origin for origin, _ in origins]
    for count in range(min(max_folds, len(candidates)), 0, -1):
        starts = [block[0] for block in np.array_split(np.array(candidates), count)]
        folds = []
        for index, start in enumerate(starts):
            inside = moments >= start
            if index + 1 < count:
                inside &= moments < starts[index + 1]
            past = known_by(moments, start, horizon_days)
            folds.append(Fold(start.astype(object), rows[past], rows[inside]))
        if all(_both_classes(labels[fold.test]) for fold in folds):
            return tuple(folds)
    return ()


def final_split(
    dates: Dates, labels: IntArray, *, horizon_days: int, test_share: float = 0.25, max_folds: int = 4
) -> FinalSplit | None:
    """Hold out the latest dates: the block whose share of the churn events is nearest to `test_share`.

    Returns
    -------
    FinalSplit or None
        None when no block leaves both classes on either side, with known labels and at least one fold.
    """
    everything = np.arange(len(dates), dtype=np.int64)
    events = max(int(labels.sum()), 1)
    best: FinalSplit | None = None
    best_distance = float("inf")
    for start in np.unique(dates)[::-1]:
        test = everything[dates >= start]
        distance = abs(float(labels[test].sum()) / events - test_share)
        if distance >= best_distance or not _both_classes(labels[test]):
            continue
        development = everything[known_by(dates, start, horizon_days)]
        folds = rolling_folds(dates, labels, development, horizon_days=horizon_days, max_folds=max_folds)
        if not folds:
            continue
        embargoed = len(dates) - len(development) - len(test)
        best = FinalSplit(start.astype(object), development, folds, test, embargoed)
        best_distance = distance
    return best


def _both_classes(labels: IntArray) -> bool:
    return len(labels) > 0 and 0 < int(labels.sum()) < len(labels)
