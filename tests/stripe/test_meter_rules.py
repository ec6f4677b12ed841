"""The rules of what Stripe is told, for any history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.stripe.meter_rules import (
    METERED_FOR,
    NewEntry,
    Slot,
    Told,
    is_too_late,
    minute_around,
    new_entry,
    which_arrived,
)

START = datetime(2026, 6, 1, tzinfo=UTC)
END = START + timedelta(days=1)
quantities = st.integers(-(10**14), 10**14)


def _slot(quantity: int, start: datetime = START) -> Slot:
    period = (START - timedelta(days=9), START + timedelta(days=20))
    return Slot(
        "cus_" + "0" * 32, "mediated_revenue", start, start + timedelta(days=1), "sub_1", *period, quantity
    )


@given(
    counted=st.lists(quantities, min_size=1), rejected=st.sets(st.integers(0, 30)), late=st.integers(0, 60)
)
def test_what_was_told_follows_what_is_counted(counted: list[int], rejected: set[int], late: int) -> None:
    """After any history of counts and rejections the entries that stand add up to what was told last."""
    entries: list[NewEntry] = []
    standing: list[NewEntry] = []
    for round_, quantity in enumerate([*counted, counted[-1]]):
        told = Told(sum(entry.quantity for entry in standing), len(entries))
        entry = new_entry(_slot(quantity), told, "cus_x", END + timedelta(days=late))
        if entry is None:
            assert told.quantity == quantity
            continue
        assert entry.quantity == quantity - told.quantity != 0
        entries.append(entry)
        # The last round stands for the sync after everything was mended.
        if round_ not in rejected or round_ == len(counted):
            standing.append(entry)
    if len(counted) not in rejected:
        assert sum(entry.quantity for entry in standing) == counted[-1]
    assert len({entry.identifier for entry in entries}) == len(entries)


@given(st.lists(quantities.filter(bool), max_size=8), st.data())
def test_what_arrived_is_found_by_its_sum(unknown: list[int], data: st.DataObject) -> None:
    came = [data.draw(st.booleans()) for _ in unknown]
    total = sum(quantity for quantity, arrived in zip(unknown, came, strict=True) if arrived)
    found = which_arrived(unknown, total)
    assert found is not None
    assert sum(quantity for quantity, arrived in zip(unknown, found, strict=True) if arrived) == total


def test_what_does_not_add_up_is_not_guessed() -> None:
    assert which_arrived([10, 20], 15) is None
    assert which_arrived([1] * 40, 3) is None


@pytest.mark.parametrize("ahead", [timedelta(microseconds=1), timedelta(hours=5)])
def test_a_slot_that_runs_is_not_sent(ahead: timedelta) -> None:
    assert new_entry(_slot(5), Told(), "cus_x", END - ahead) is None
    assert new_entry(_slot(5), Told(), "cus_x", END) is not None


def test_an_event_is_too_late_before_stripe_refuses_it() -> None:
    assert is_too_late(START, START + METERED_FOR)
    assert is_too_late(START, START + METERED_FOR - timedelta(minutes=30))
    assert not is_too_late(START, START + METERED_FOR - timedelta(hours=2))


def test_an_identifier_fits_into_what_stripe_takes() -> None:
    entry = NewEntry(_slot(-1), "cus_x", 10_000_000, -1, is_too_late=False)
    assert len(entry.identifier) <= 100
    assert "." not in entry.identifier


@given(st.timedeltas(timedelta(), timedelta(days=9_999)))
def test_a_window_is_of_whole_minutes_around_an_instant(later: timedelta) -> None:
    instant = START + later
    start, end = minute_around(instant)
    assert start <= instant < end
    assert start.timestamp() % 60 == end.timestamp() % 60 == 0
