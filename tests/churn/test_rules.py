"""Who is left alone so that the retention mail's effect can be measured."""

from __future__ import annotations

import pytest

from apex_pipelines.churn.rules import flagged, holdout


def test_the_hold_out_is_the_same_for_ever_and_about_its_share() -> None:
    customers = [f"cus_{number:032x}" for number in range(20_000)]
    chosen = {customer for customer in customers if holdout(customer, 0.10)}
    assert 0.09 < len(chosen) / len(customers) < 0.11
    assert chosen == {customer for customer in reversed(customers) if holdout(customer, 0.10)}
    wider = {customer for customer in customers if holdout(customer, 0.20)}
    assert chosen < wider, "a larger share only adds"
    # A fixed example: changing the hash would silently mix the groups of a running measurement.
    assert [holdout(f"cus_{number:032x}", 0.5) for number in range(8)] == [
        False, True, False, True, False, True, False, False,
    ]  # fmt: skip


def test_no_share_holds_nobody_and_the_whole_share_everybody() -> None:
    assert not holdout("cus_1", 0)
    assert holdout("cus_1", 1)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1, received 10"):
        holdout("cus_1", 10)


def test_only_above_the_threshold_is_flagged() -> None:
    assert flagged(0.71, 0.70)
    assert not flagged(0.70, 0.70)
