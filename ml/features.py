"""From a polars frame to the matrix that models see, with errors that name the column.

Belongs here: which columns are features, and how they become numbers.
Does not belong here: how features are computed (the dbt mart `churn_features` does that, point-in-time).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FEATURES = (
    "usage_last_30_days",
    "usage_change_pct",
    "failed_payments_count",
    "support_tickets_count",
    "days_since_last_login",
    "feature_usage_score",
    "api_error_rate",
)
"""What every frame must carry. A frame may bring more numeric columns; they become features as well."""

KEYS = ("customer_id", "feature_date")
LABEL = "churned"
PRICE = "monthly_price_usd"
"""Optional: what the customer pays a month. Weighs profit; never a feature."""

NOT_FEATURES = frozenset({*KEYS, LABEL, PRICE, "label_known_on"})


class FeatureFrameError(ValueError):
    """A frame that no model can be given; the message names the column and what was received."""


def feature_names(frame: pl.DataFrame) -> tuple[str, ...]:
    """Required features first, then the frame's other numeric columns by name.

    Raises
    ------
    FeatureFrameError
        If a required feature or a key is missing, or a required feature is not numeric.
    """
    missing = [name for name in (*KEYS, *FEATURES) if name not in frame.columns]
    if missing:
        raise FeatureFrameError(
            f"the frame lacks {', '.join(missing)}; received columns: {', '.join(frame.columns)}"
        )
    for name in FEATURES:
        if not _is_number(frame.schema[name]):
            raise FeatureFrameError(f"feature {name!r} must be numeric, received {frame.schema[name]}")
    extra = sorted(
        name
        for name, dtype in frame.schema.items()
        if name not in NOT_FEATURES and name not in FEATURES and _is_number(dtype)
    )
    return (*FEATURES, *extra)


def matrix(frame: pl.DataFrame, names: tuple[str, ...]) -> FloatArray:
    """The named columns as float64, shape (rows, len(names)); a null becomes NaN, which means "unknown".

    Raises
    ------
    FeatureFrameError
        If a column is missing, not numeric, or holds an infinite value.
    """
    result = np.empty((frame.height, len(names)), dtype=np.float64)
    for index, name in enumerate(names):
        if name not in frame.columns:
            raise FeatureFrameError(
                f"the model needs feature {name!r}; received columns: {', '.join(frame.columns)}"
            )
        if not _is_number(frame.schema[name]):
            raise FeatureFrameError(f"feature {name!r} must be numeric, received {frame.schema[name]}")
        result[:, index] = frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        infinite = int(np.isinf(result[:, index]).sum())
        if infinite:
            raise FeatureFrameError(f"feature {name!r} is infinite in {infinite} of {frame.height} rows")
    return result


def labels(frame: pl.DataFrame) -> IntArray:
    """The label column as 0 and 1.

    Raises
    ------
    FeatureFrameError
        If the column is missing or holds anything but 0 and 1.
    """
    if LABEL not in frame.columns:
        raise FeatureFrameError(f"the frame lacks the label {LABEL!r}; received: {', '.join(frame.columns)}")
    values = frame[LABEL]
    strange = values.filter(values.is_null() | ~values.cast(pl.Int64).is_in([0, 1]))
    if strange.len():
        raise FeatureFrameError(
            f"label {LABEL!r} must be 0 or 1, received {strange.unique().head(3).to_list()} among others"
        )
    return values.cast(pl.Int64).to_numpy()


def in_canonical_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows by feature date, then customer, so that the store's row order can't change a model.

    Raises
    ------
    FeatureFrameError
        If the keys are missing, of a wrong type, or a customer has two rows at one feature date.
    """
    for name in KEYS:
        if name not in frame.columns:
            raise FeatureFrameError(f"the frame lacks {name!r}; received columns: {', '.join(frame.columns)}")
    if frame.schema["feature_date"] != pl.Date:
        raise FeatureFrameError(f"'feature_date' must be a date, received {frame.schema['feature_date']}")
    # Only the keys are sorted at first: most frames arrive in order, and copying a large one costs memory.
    keys = frame.select(KEYS).with_row_index("position").sort("feature_date", "customer_id")
    same_as_above = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in KEYS)
    repeated = keys.filter(same_as_above)
    if repeated.height:
        raise FeatureFrameError(
            f"{repeated.height} rows repeat the customer_id and feature_date of another, "
            f"such as {repeated['customer_id'][0]} on {repeated['feature_date'][0]}"
        )
    return frame if keys["position"].is_sorted() else frame[keys["position"]]


def feature_dates(frame: pl.DataFrame) -> NDArray[np.datetime64]:
    """The feature dates as datetime64[D]."""
    return frame["feature_date"].to_numpy().astype("datetime64[D]")


def customer_codes(frame: pl.DataFrame) -> IntArray:
    """A whole number per customer, 0..customers-1, by order of first appearance."""
    return frame["customer_id"].rank("dense").to_numpy().astype(np.int64) - 1


def customer_share(customer_id: str, salt: str) -> float:
    """A number in [0, 1) that depends on the customer and the salt alone; for samples that repeat."""
    digest = blake2b(f"{salt}:{customer_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _is_number(dtype: pl.DataType) -> bool:
    # A column that is null throughout has the type Null; it is a feature of which nothing is known.
    return dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)
