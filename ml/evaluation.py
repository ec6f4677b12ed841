"""How good probabilities are, with intervals that respect that one customer has several rows.

Belongs here: metrics, their bootstrap, the paired comparison of two models, curves.
Does not belong here: what follows from them (`ml.gate`), pictures (`ml.plots`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ml.features import FloatArray, IntArray

REPLICATES = 400
SEED = 42
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """Quality on test rows.

    Attributes
    ----------
    brier_skill : 1 - Brier / Brier of always saying the test rows' own base rate; 0 is no better than that.
    ece : mean absolute gap between said and seen, over ten bins of equal size.
    top_decile_lift : churn rate among the tenth with the highest probabilities over the churn rate of all.
    profit_per_1000_usd : by `RetentionEconomics.realised_profit`, for each 1,000 customers considered.
    """

    rows: int
    customers: int
    events: int
    churned_customers: int
    base_rate: float
    auc: Interval
    average_precision: Interval
    brier: Interval
    brier_skill: Interval
    ece: Interval
    top_decile_lift: Interval
    profit_per_1000_usd: Interval

    def intervals(self) -> dict[str, Interval]:
        """The figures that carry an interval, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Interval)}


@dataclass(frozen=True)
class Comparison:
    """A candidate against the champion on the same rows; gains are positive when the candidate is better."""

    rows: int
    churned_customers: int
    champion_auc: float
    candidate_auc: float
    auc_gain: Interval
    brier_gain: Interval


@dataclass(frozen=True)
class Curves:
    """Points to draw. ROC: (false, true positive rate); PR: (recall, precision); bins: (said, seen, rows)."""

    roc: tuple[tuple[float, float], ...]
    precision_recall: tuple[tuple[float, float], ...]
    calibration: tuple[tuple[float, float, int], ...]


class _Ranked:
    """Rows sorted once by falling probability, so that each bootstrap replicate costs one pass.

    A replicate is a weight per customer: how often the bootstrap drew them.
    """

    def __init__(
        self, churned: IntArray, probability: FloatArray, codes: IntArray, profit: FloatArray | None = None
    ) -> None:
        order = np.argsort(-probability, kind="stable")
        self.churned = churned[order].astype(np.float64)
        self.probability = probability[order]
        self.codes = codes[order]
        self.profit = np.zeros(len(order)) if profit is None else profit[order]
        # Rows of equal probability form one step of the curves; their order means nothing.
        self.starts = np.flatnonzero(np.r_[True, np.diff(self.probability) != 0])
        bins = min(CALIBRATION_BINS, max(len(order), 1))
        self.bin = np.arange(len(order)) * bins // max(len(order), 1)

    @cached_property
    def squared_error(self) -> FloatArray:
        return (self.probability - self.churned) ** 2

    def steps(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weights of leavers and of stayers per distinct probability, highest first."""
        row = weight[self.codes]
        leaving = row * self.churned
        positive = np.add.reduceat(leaving, self.starts)
        return positive, np.add.reduceat(row, self.starts) - positive

    def auc(self, weight: FloatArray) -> float:
        positive, negative = self.steps(weight)
        return _auc(positive, negative)

    def brier(self, weight: FloatArray) -> float:
        row = weight[self.codes]
        return float(row @ self.squared_error / row.sum())

    def all(self, weight: FloatArray) -> dict[str, float]:
        row = weight[self.codes]
        total = float(row.sum())
        positive, negative = self.steps(weight)
        leavers = float(positive.sum())
        base = leavers / total
        brier = float(row @ self.squared_error / total)
        constant = base * (1 - base)
        gap = np.bincount(self.bin, weights=row * (self.probability - self.churned))
        return {
            "auc": _auc(positive, negative),
            "average_precision": _average_precision(positive, negative),
            "brier": brier,
            "brier_skill": 1 - brier / constant if constant > 0 else float("nan"),
            "ece": float(np.abs(gap).sum() / total),
            "top_decile_lift": _lift(positive, negative, 0.1),
            "profit_per_1000_usd": float(row @ self.profit / total * 1000),
        }


def evaluate(
    churned: IntArray,
    probability: FloatArray,
    codes: IntArray,
    profit: FloatArray,
    *,
    replicates: int = REPLICATES,
) -> Evaluation:
    """Every metric with an interval from a bootstrap by customer.

    Parameters
    ----------
    churned, probability : shape (rows,); what happened (0 or 1) and what was said.
    codes : shape (rows,); a number per customer, 0..customers-1.
    profit : shape (rows,); USD realised on each row.

    Raises
    ------
    ValueError
        If there are no rows, or only one class.
    """
    if len(churned) == 0 or churned.min() == churned.max():
        raise ValueError(f"evaluation needs rows of both classes, received {len(churned)} rows of one class")
    ranked = _Ranked(churned, probability, codes, profit)
    point = ranked.all(np.ones(int(codes.max()) + 1))
    drawn = [ranked.all(weight) for weight in _draws(codes, replicates)]
    intervals = {
        name: _interval(value, np.array([replicate[name] for replicate in drawn]))
        for name, value in point.items()
    }
    return Evaluation(
        rows=len(churned),
        customers=len(np.unique(codes)),
        events=int(churned.sum()),
        churned_customers=len(np.unique(codes[churned == 1])),
        base_rate=float(churned.mean()),
        **intervals,
    )


def compare(
    churned: IntArray,
    champion: FloatArray,
    candidate: FloatArray,
    codes: IntArray,
    *,
    replicates: int = REPLICATES,
) -> Comparison:
    """Paired bootstrap by customer: both models are judged on the same draws, so shared luck cancels."""
    old, new = _Ranked(churned, champion, codes), _Ranked(churned, candidate, codes)
    gains: list[Callable[[FloatArray], float]] = [
        lambda weight: new.auc(weight) - old.auc(weight),
        lambda weight: old.brier(weight) - new.brier(weight),
    ]
    ones = np.ones(int(codes.max()) + 1)
    drawn = np.array([[gain(weight) for gain in gains] for weight in _draws(codes, replicates)])
    return Comparison(
        rows=len(churned),
        churned_customers=len(np.unique(codes[churned == 1])),
        champion_auc=old.auc(ones),
        candidate_auc=new.auc(ones),
        auc_gain=_interval(gains[0](ones), drawn[:, 0]),
        brier_gain=_interval(gains[1](ones), drawn[:, 1]),
    )


def auc(churned: IntArray, score: FloatArray) -> float:
    """Area under the ROC curve; NaN when only one class is there. Ties count half."""
    ranked = _Ranked(churned, score, np.zeros(len(churned), dtype=np.int64))
    return ranked.auc(np.ones(1))


def average_precision(churned: IntArray, score: FloatArray) -> float:
    """Area under the precision-recall curve by steps; NaN without any event."""
    ranked = _Ranked(churned, score, np.zeros(len(churned), dtype=np.int64))
    return _average_precision(*ranked.steps(np.ones(1)))


def single_feature_aucs(churned: IntArray, values: FloatArray, names: tuple[str, ...]) -> dict[str, float]:
    """How well each feature alone tells leavers from stayers, in either direction: 0.5 to 1.

    Unknown values count as lower than all others: a feature that is filled in only for those who left is
    the commonest leak.
    """
    result = {}
    for index, name in enumerate(names):
        column = values[:, index]
        known = column[~np.isnan(column)]
        floor = known.min() - 1 if len(known) else 0.0
        one_way = auc(churned, np.where(np.isnan(column), floor, column))
        result[name] = max(one_way, 1 - one_way) if not np.isnan(one_way) else 0.5
    return result


def curves(churned: IntArray, probability: FloatArray, *, points: int = 200) -> Curves:
    """Points of the ROC, precision-recall and calibration curves, thinned to about `points` each."""
    ranked = _Ranked(churned, probability, np.zeros(len(churned), dtype=np.int64))
    positive, negative = (np.cumsum(part) for part in ranked.steps(np.ones(1)))
    keep = np.unique(np.linspace(0, len(positive) - 1, min(points, len(positive))).astype(int))
    true_rate, false_rate = positive / positive[-1], negative / negative[-1]
    precision = positive / (positive + negative)
    calibration = []
    for number in range(int(ranked.bin.max()) + 1):
        inside = ranked.bin == number
        said, seen = ranked.probability[inside].mean(), ranked.churned[inside].mean()
        calibration.append((float(said), float(seen), int(inside.sum())))
    return Curves(
        roc=((0.0, 0.0), *((float(false_rate[i]), float(true_rate[i])) for i in keep)),
        precision_recall=tuple((float(true_rate[i]), float(precision[i])) for i in keep),
        calibration=tuple(reversed(calibration)),
    )


def _auc(positive: FloatArray, negative: FloatArray) -> float:
    above = np.cumsum(positive) - positive
    total = positive.sum() * negative.sum()
    return float((negative * (above + positive / 2)).sum() / total) if total > 0 else float("nan")


def _average_precision(positive: FloatArray, negative: FloatArray) -> float:
    found, seen = np.cumsum(positive), np.cumsum(positive + negative)
    if found[-1] == 0:
        return float("nan")
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return float((positive * precision).sum() / found[-1])


def _lift(positive: FloatArray, negative: FloatArray, share: float) -> float:
    size = positive + negative
    total, leavers = float(size.sum()), float(positive.sum())
    if leavers == 0:
        return float("nan")
    wanted = share * total
    # A step that straddles the border counts for the part of it that fits: its rows have no order.
    fits = np.clip(wanted - (np.cumsum(size) - size), 0, size)
    taken = np.divide(fits, size, out=np.zeros_like(fits), where=size > 0)
    return float((taken * positive).sum() / wanted / (leavers / total))


def _draws(codes: IntArray, replicates: int) -> Iterator[FloatArray]:
    """How often each customer was drawn, replicate after replicate; one at a time, to stay small."""
    customers = int(codes.max()) + 1
    generator = np.random.default_rng(SEED)
    for _ in range(replicates):
        drawn = generator.integers(0, customers, customers)
        yield np.bincount(drawn, minlength=customers).astype(np.float64)


def _interval(value: float, drawn: FloatArray) -> Interval:
    usable = drawn[~np.isnan(drawn)]
    if len(usable) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value, float(low), float(high))
