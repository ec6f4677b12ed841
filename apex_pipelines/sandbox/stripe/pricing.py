"""What a quantity costs.

Belongs here: amounts of a price, as pure functions. Does not belong here: whose quantity, and when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from apex_pipelines.sandbox.stripe.store import Object


@dataclass(frozen=True)
class Charge:
    """One line: so many at so much; `unit_amount_decimal` in cents, `amount` in whole cents."""

    quantity: int
    amount: int
    unit_amount_decimal: str
    tier: int | None = None


def whole_cents(exact: Decimal) -> int:
    """Stripe rounds a line half up, away from zero for credits."""
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def charges(price: Object, quantity: int) -> list[Charge]:
    """The lines for a quantity: one, or one for each tier that a graduated price reaches."""
    if price["billing_scheme"] == "per_unit":
        unit = Decimal(price["unit_amount_decimal"])
        return [Charge(quantity, whole_cents(unit * quantity), price["unit_amount_decimal"])]
    if price["tiers_mode"] == "volume":
        return [_volume(price["tiers"], quantity)]
    return list(_graduated(price["tiers"], quantity))


def _volume(tiers: list[Object], quantity: int) -> Charge:
    """All units at the price of the tier that the whole quantity falls into."""
    number, tier = next(
        (number, tier)
        for number, tier in enumerate(tiers, 1)
        if tier["up_to"] is None or quantity <= tier["up_to"]
    )
    return _of_tier(tier, quantity, number)


def _graduated(tiers: list[Object], quantity: int) -> Iterator[Charge]:
    """Each unit at the price of the tier that it falls into."""
    below = 0
    for number, tier in enumerate(tiers, 1):
        upper = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        if upper > below or number == 1:
            yield _of_tier(tier, upper - below, number)
        below = max(below, upper)


def _of_tier(tier: Object, quantity: int, number: int) -> Charge:
    unit = tier["unit_amount_decimal"] or "0"
    flat = Decimal(tier["flat_amount_decimal"] or 0)
    return Charge(quantity, whole_cents(Decimal(unit) * quantity + flat), unit, number)


def prorated(amount: int, seconds: int, of_seconds: int) -> int:
    """Part of an amount by the second."""
    return whole_cents(Decimal(amount) * seconds / of_seconds)
