"""Quantities convert exactly between units and storage, or not at all."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.metering.events import UsageEvent
from apex_pipelines.metering.quantity import (
    MAX_STORED,
    QuantityNotFinite,
    QuantityTooLarge,
    QuantityTooPrecise,
    from_storage,
    to_storage,
)

SCALES = st.integers(min_value=0, max_value=9)
STORED = st.integers(min_value=-MAX_STORED, max_value=MAX_STORED)


@given(STORED, SCALES)
def test_what_is_stored_reads_back_as_it_was_sent(stored: int, scale: int) -> None:
    assert to_storage(from_storage(stored, scale), scale) == stored


@given(STORED, SCALES)
def test_a_json_number_and_a_decimal_string_are_the_same_quantity(stored: int, scale: int) -> None:
    number = f"{from_storage(stored, scale):f}"
    for text in (number, f'"{number}"'):
        body = f'{{"metric_type": "m", "quantity": {text}}}'.encode()
        assert to_storage(msgspec.json.decode(body, type=UsageEvent).quantity, scale) == stored


@given(st.decimals(allow_nan=True, allow_infinity=True), SCALES)
def test_any_decimal_is_stored_exactly_or_refused(quantity: Decimal, scale: int) -> None:
    try:
        stored = to_storage(quantity, scale)
    except (QuantityNotFinite, QuantityTooLarge, QuantityTooPrecise):
        return
    assert Decimal(stored) == quantity * 10**scale
    assert abs(stored) <= MAX_STORED


@pytest.mark.parametrize("quantity", [MAX_STORED + 1, -MAX_STORED - 1, Decimal("1e15") + 1, 10**400])
def test_one_beyond_the_limit_is_too_large(quantity: int | Decimal) -> None:
    with pytest.raises(QuantityTooLarge, match="1000000000000000"):
        to_storage(quantity, 0)


def test_enormous_exponents_cost_nothing() -> None:
    with pytest.raises(QuantityTooLarge):
        to_storage(Decimal("1e999999999"), 9)
    with pytest.raises(QuantityTooPrecise):
        to_storage(Decimal("1e-999999999"), 9)
