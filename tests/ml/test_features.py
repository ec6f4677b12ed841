"""What a frame must be, and what is said when it isn't."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from ml.features import (
    FEATURES,
    FeatureFrameError,
    feature_names,
    in_canonical_order,
    labels,
    matrix,
)
from tests.ml.churn_worlds import minimal


def test_features_are_the_required_ones_then_other_numbers_but_never_keys_label_or_price() -> None:
    frame = minimal(2, [0, 1]).with_columns(
        zeta=pl.lit(1.0),
        alpha=pl.lit(2),
        is_trial=pl.lit(True),
        plan=pl.lit("indie"),
        monthly_price_usd=pl.lit(99.0),
        label_known_on=pl.lit(date(2026, 7, 1)),
    )
    assert feature_names(frame) == (*FEATURES, "alpha", "is_trial", "zeta")


def test_a_missing_required_feature_is_named_with_what_came_instead() -> None:
    with pytest.raises(FeatureFrameError, match=r"lacks api_error_rate; received columns: customer_id"):
        feature_names(minimal(2, [0, 1]).drop("api_error_rate"))


def test_a_text_feature_is_named_with_its_type() -> None:
    frame = minimal(2, [0, 1]).with_columns(api_error_rate=pl.lit("high"))
    with pytest.raises(FeatureFrameError, match=r"'api_error_rate' must be numeric, received String"):
        feature_names(frame)


def test_nulls_become_unknown_and_infinities_are_refused_by_name() -> None:
    frame = minimal(2, [0, 1]).with_columns(usage_change_pct=pl.Series([None, 2.5]))
    values = matrix(frame, ("usage_change_pct", "api_error_rate"))
    assert values.shape == (2, 2)
    assert np.isnan(values[0, 0])
    assert values[1, 0] == 2.5
    empty = frame.with_columns(api_error_rate=pl.lit(None))
    assert np.isnan(matrix(empty, ("api_error_rate",))).all()
    with pytest.raises(FeatureFrameError, match=r"'usage_change_pct' is infinite in 1 of 2 rows"):
        matrix(frame.with_columns(usage_change_pct=pl.Series([np.inf, 1.0])), ("usage_change_pct",))


@pytest.mark.parametrize("bad", [[0, 2], [0, None]])
def test_a_label_that_is_neither_0_nor_1_is_refused(bad: list[int | None]) -> None:
    frame = minimal(2, [0, 1]).with_columns(churned=pl.Series(bad))
    with pytest.raises(FeatureFrameError, match=r"'churned' must be 0 or 1"):
        labels(frame)


def test_two_rows_of_a_customer_at_one_date_are_refused() -> None:
    frame = minimal(2, [0, 1])
    with pytest.raises(FeatureFrameError, match=r"1 rows repeat .* such as cus_0+ on 2026-06-01"):
        in_canonical_order(pl.concat([frame, frame.head(1)]))
