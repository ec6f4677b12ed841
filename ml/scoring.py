"""Probabilities, their reasons and their worth for customers of today.

Belongs here: scoring a frame with a loaded model. Does not belong here: storing scores, mailing anybody.
"""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from ml.economics import RetentionEconomics
from ml.features import KEYS, FeatureFrameError, FloatArray, matrix
from ml.model import ChurnModel
from ml.training import prices

REASONS = 3
LEAST_EFFECT = 0.001  # a tenth of a percentage point moves nobody
CHUNK_ROWS = 20_000

SCORES_SCHEMA = {
    "customer_id": pl.String,
    "feature_date": pl.Date,
    "model_version": pl.String,
    "probability": pl.Float64,
    "expected_profit": pl.Float64,
    "reasons": pl.String,
}


def score(model: ChurnModel, frame: pl.DataFrame, economics: RetentionEconomics) -> pl.DataFrame:
    """Score each row; the most profitable customer to write to comes first, then the likelier leaver.

    Returns
    -------
    pl.DataFrame
        Columns of `SCORES_SCHEMA`: the calibrated probability, the expected profit of a retention mail in
        USD, and the reasons as a JSON list of {feature, value, effect}, strongest first.

    Raises
    ------
    ml.features.FeatureFrameError
        If the frame lacks a key or one of the model's features.
    """
    for key in KEYS:
        if key not in frame.columns:
            raise FeatureFrameError(f"the frame lacks {key!r}; received columns: {', '.join(frame.columns)}")
    parts = [
        _score_chunk(model, frame.slice(start, CHUNK_ROWS), economics)
        for start in range(0, frame.height, CHUNK_ROWS)
    ]
    if not parts:
        return pl.DataFrame(schema=SCORES_SCHEMA)
    return pl.concat(parts).sort(
        "expected_profit", "probability", "customer_id", descending=[True, True, False]
    )


def feature_effects(model: ChurnModel, values: FloatArray) -> FloatArray:
    """How much each feature moved each row, shape (rows, features), in points of probability.

    The effect is the estimator's score minus its score with that one feature at the training median: what
    sets this customer apart from an ordinary one. Taken before calibration, whose steps would hide small
    moves; calibration never changes an effect's sign.
    """
    before = model.score(values)
    effects = np.empty(values.shape)
    for index, median in enumerate(model.medians):
        replaced = values.copy()
        replaced[:, index] = median
        effects[:, index] = before - model.score(replaced)
    return effects


def _score_chunk(model: ChurnModel, frame: pl.DataFrame, economics: RetentionEconomics) -> pl.DataFrame:
    values = matrix(frame, model.features)
    probability = model.calibrator.apply(model.score(values))
    effects = feature_effects(model, values)
    return frame.select(
        pl.col("customer_id"),
        pl.col("feature_date"),
        pl.lit(model.version).alias("model_version"),
        pl.Series("probability", probability),
        pl.Series("expected_profit", economics.expected_profit(probability, prices(frame))),
        pl.Series("reasons", _reasons(model.features, values, effects)),
    )


def _reasons(names: tuple[str, ...], values: FloatArray, effects: FloatArray) -> list[str]:
    strongest = np.argsort(-np.abs(effects), axis=1, kind="stable")[:, :REASONS]
    result = []
    for row, order in enumerate(strongest):
        listed = [
            {
                "feature": names[index],
                # JSON knows no NaN; an unknown value is null.
                "value": None if np.isnan(values[row, index]) else round(float(values[row, index]), 4),
                "effect": round(float(effects[row, index]), 4),
            }
            for index in order
            if abs(effects[row, index]) >= LEAST_EFFECT
        ]
        result.append(json.dumps(listed))
    return result
