"""The life-cycle rules by themselves, at their edges."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.lifecycle import rules

PERCENTS = tuple(Decimal(p) for p in (80, 90, 100, 110))
DAY = date(2026, 6, 1)


@pytest.mark.parametrize(
    ("quantity", "passed"),
    [
        (799_999, []),
        (800_000, [80]),
        (899_999, [80]),
        (1_000_000, [80, 90, 100]),
        (9_999_999, [80, 90, 100, 110]),
    ],
)
def test_thresholds_are_reached_exactly(quantity: int, passed: list[int]) -> None:
    assert rules.thresholds_passed(quantity, 1_000_000, PERCENTS) == passed


def test_nothing_is_reached_where_nothing_is_included() -> None:
    assert rules.thresholds_passed(5, 0, PERCENTS) == []


def test_only_the_highest_new_threshold_is_mailed() -> None:
    assert rules.threshold_to_mail([80, 90, 100], ()) == 100
    assert rules.threshold_to_mail([80, 90, 100], {80}) == 100
    assert rules.threshold_to_mail([80, 90, 100], {100}) is None  # a threshold added below is only recorded
    assert rules.threshold_to_mail([], {80}) is None


@given(quantity=st.integers(0, 10**15), included=st.integers(1, 10**15), more=st.integers(0, 10**12))
def test_use_that_grows_never_loses_a_threshold(quantity: int, included: int, more: int) -> None:
    before = rules.thresholds_passed(quantity, included, PERCENTS)
    assert before == rules.thresholds_passed(quantity + more, included, PERCENTS)[: len(before)]


@pytest.mark.parametrize(("days", "starts"), [(0, False), (29, False), (30, True), (-29, False), (-30, True)])
def test_an_episode_lasts_thirty_days(days: int, starts: bool) -> None:
    assert rules.starts_episode([DAY - timedelta(days=days)], DAY) is starts


def test_first_episode_starts() -> None:
    assert rules.starts_episode([], DAY)


@pytest.mark.parametrize(
    ("age", "due"),
    [
        (0, None),
        (1, None),
        (2, 2),
        (4, 2),
        (5, 5),
        (6, 5),
        (7, 7),
        (9, 7),
        (10, None),
        (12, 12),
        (14, 12),
        (15, None),
    ],
)
def test_check_in_due_by_age(age: int, due: int | None) -> None:
    assert rules.due_check_in(age) == due


@pytest.mark.parametrize(
    ("days_left", "reminder"),
    [(8, None), (7, 7), (5, 7), (4, None), (3, 3), (2, 3), (1, 1), (0, 1), (-1, None)],
)
def test_trial_reminder_due(days_left: int, reminder: int | None) -> None:
    assert rules.trial_reminder(days_left) == reminder


def test_first_impression_says_what_the_first_request_would() -> None:
    assert rules.step_mail("first_request", {"first_request"}) == "first_request"
    assert rules.step_mail("first_request", {"first_request", "first_impression"}) is None
    assert rules.step_mail("first_impression", {"first_impression"}) == "first_impression"
    assert rules.step_mail("signed_up", {"signed_up"}) is None
    assert rules.step_mail("sdk_downloaded.ios", {"sdk_downloaded.ios"}) == "sdk_guide"
    assert rules.step_mail("sdk_downloaded.ios", {"sdk_downloaded.ios", "first_request"}) is None
    assert rules.step_mail("sdk_downloaded.ios", {"sdk_downloaded.ios", "first_impression"}) is None


def test_growth() -> None:
    assert rules.growth_percent(150, 100) == 50
    assert rules.growth_percent(121, 100) == 21
    assert rules.growth_percent(5, 0) is None
