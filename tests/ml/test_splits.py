"""No split may ever train on a label that was not known yet."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.splits import Dates, final_split, rolling_folds

DAY = np.datetime64("2026-01-01", "D")


@st.composite
def histories(draw: st.DrawFn) -> tuple[Dates, np.ndarray, int]:
    """Dates (rows in any order, several a day, gaps), labels and a horizon."""
    offsets = draw(st.lists(st.integers(0, 400), min_size=1, max_size=120))
    churned = draw(st.lists(st.integers(0, 1), min_size=len(offsets), max_size=len(offsets)))
    horizon = draw(st.integers(1, 120))
    return DAY + np.array(offsets, dtype="timedelta64[D]"), np.array(churned, dtype=np.int64), horizon


@settings(max_examples=200, deadline=None)
@given(histories())
def test_a_row_trains_only_when_its_label_was_known_at_the_origin(
    history: tuple[Dates, np.ndarray, int],
) -> None:
    dates, churned, horizon = history
    span = np.timedelta64(horizon, "D")
    for fold in rolling_folds(dates, churned, np.arange(len(dates)), horizon_days=horizon):
        origin = np.datetime64(fold.origin, "D")
        assert (dates[fold.train] + span <= origin).all()
        assert (dates[fold.test] >= origin).all()


@settings(max_examples=200, deadline=None)
@given(histories())
def test_the_test_begins_after_every_label_that_training_or_calibration_knew(
    history: tuple[Dates, np.ndarray, int],
) -> None:
    dates, churned, horizon = history
    split = final_split(dates, churned, horizon_days=horizon)
    if split is None:
        return
    start, span = np.datetime64(split.test_start, "D"), np.timedelta64(horizon, "D")
    learned = [split.development, *(fold.train for fold in split.folds), *(fold.test for fold in split.folds)]
    for rows in learned:
        assert (dates[rows] + span <= start).all()
    assert (dates[split.test] >= start).all()
    assert len(split.development) + len(split.test) + split.embargoed == len(dates)
    for rows in (split.development, split.test, *(fold.train for fold in split.folds)):
        assert set(churned[rows]) == {0, 1}
    calibrated = np.concatenate([fold.test for fold in split.folds])
    assert len(calibrated) == len(set(calibrated)), "a row is calibrated on once"


def test_an_even_history_gives_the_latest_quarter_of_events_to_the_test() -> None:
    weeks = np.repeat(np.arange(40) * 7, 50)
    churned = np.tile(np.r_[np.ones(5, dtype=np.int64), np.zeros(45, dtype=np.int64)], 40)
    split = final_split(DAY + weeks.astype("timedelta64[D]"), churned, horizon_days=30)
    assert split is not None
    assert split.test_start == (DAY + np.timedelta64(30 * 7, "D")).astype(object)
    assert len(split.folds) == 4
    assert split.embargoed == 4 * 50, "four weekly dates lie within 30 days of the test"


def test_a_history_shorter_than_two_horizons_has_no_split() -> None:
    dates = DAY + np.repeat(np.arange(0, 56, 14), 10).astype("timedelta64[D]")
    churned = np.tile(np.r_[1, np.zeros(9, dtype=np.int64)], 4)
    assert final_split(dates, churned, horizon_days=30) is None
