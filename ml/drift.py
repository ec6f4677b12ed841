"""Has the population moved away from the one that the model learned from?

Belongs here: the population stability index (PSI). Does not belong here: what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ml.features import FloatArray

LEAST_SHARE = 1e-4  # an empty bin must not make the index infinite


@dataclass(frozen=True)
class FeatureReference:
    """Training distribution of one feature: inner bin borders, and shares per bin with "unknown" last."""

    feature: str
    borders: tuple[float, ...]
    shares: tuple[float, ...]


def reference(values: FloatArray, names: tuple[str, ...], *, bins: int = 10) -> tuple[FeatureReference, ...]:
    """Borders at the training deciles; equal deciles fall together, so a spike keeps a bin of its own."""
    result = []
    for index, name in enumerate(names):
        column = values[:, index]
        known = column[~np.isnan(column)]
        borders = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])) if len(known) else known
        inner = tuple(float(border) for border in borders)
        result.append(FeatureReference(name, inner, tuple(_shares(column, inner).tolist())))
    return tuple(result)


def psi(
    references: tuple[FeatureReference, ...], values: FloatArray, names: tuple[str, ...]
) -> dict[str, float]:
    """PSI per feature: under 0.1 stable, above 0.25 moved (Siddiqi, "Credit Risk Scorecards", 2006)."""
    result = {}
    for item in references:
        expected = np.maximum(np.array(item.shares), LEAST_SHARE)
        actual = np.maximum(_shares(values[:, names.index(item.feature)], item.borders), LEAST_SHARE)
        result[item.feature] = float(((actual - expected) * np.log(actual / expected)).sum())
    return result


def _shares(column: FloatArray, borders: tuple[float, ...]) -> FloatArray:
    unknown = np.isnan(column)
    edges = (-np.inf, *borders, np.inf)
    known = column[~unknown]
    counts = [float(((known > low) & (known <= high)).sum()) for low, high in pairwise(edges)]
    return np.array([*counts, float(unknown.sum())]) / max(len(column), 1)
