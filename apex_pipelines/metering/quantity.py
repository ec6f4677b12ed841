"""Exact conversion of quantities between a metric's unit and the whole numbers that are stored.

Belongs here: arithmetic. Floats never appear: what can't be represented exactly is rejected, not rounded.
"""

from __future__ import annotations

from decimal import Context, Decimal

# An Int64 holds 9.2e18; staying at 1e15 leaves room for sums over thousands of such events.
MAX_STORED = 10**15
_MAX_STORED_DIGITS = len(str(MAX_STORED)) - 1
# Wide enough for any number that passed the checks on its digits, so nothing is ever rounded in silence.
_EXACT = Context(prec=100)
_MAX_TRAILING_DIGITS = 50


class QuantityTooLarge(ValueError):
    """The quantity is beyond ±10^15 storage units."""


class QuantityTooPrecise(ValueError):
    """The quantity has more decimal places than the metric keeps."""


class QuantityNotFinite(ValueError):
    """The quantity is NaN or infinite."""


def to_storage(quantity: int | Decimal, scale: int) -> int:
    """`quantity` in a metric's unit as whole storage units, ``quantity * 10**scale``.

    Raises
    ------
    QuantityNotFinite, QuantityTooLarge, QuantityTooPrecise
        If the result would not be a whole number within ±10^15.
    """
    factor: int = 10**scale
    stored = quantity * factor if isinstance(quantity, int) else _decimal_to_storage(quantity, scale)
    if not -MAX_STORED <= stored <= MAX_STORED:
        raise QuantityTooLarge(f"at most {from_storage(MAX_STORED, scale):f} either way")
    return stored


def _decimal_to_storage(quantity: Decimal, scale: int) -> int:
    if not quantity.is_finite():
        raise QuantityNotFinite(f"{quantity} is no number")
    if not quantity:
        return 0
    # Both ends are looked at before any arithmetic, so that 1e999999999 costs nothing.
    if quantity.adjusted() + scale > _MAX_STORED_DIGITS:
        raise QuantityTooLarge(f"at most {from_storage(MAX_STORED, scale):f} either way")
    exponent = quantity.as_tuple().exponent
    if isinstance(exponent, int) and exponent + scale < -_MAX_TRAILING_DIGITS:
        raise QuantityTooPrecise(f"at most {scale} decimal places")
    scaled = _EXACT.scaleb(quantity, scale)
    whole = int(scaled)
    if whole != scaled:
        raise QuantityTooPrecise(f"at most {scale} decimal places")
    return whole


def from_storage(stored: int, scale: int) -> Decimal:
    """`stored` whole units as an exact decimal in the metric's unit, with `scale` decimal places."""
    return Decimal(stored).scaleb(-scale, context=_EXACT)
