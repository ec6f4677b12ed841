"""What a billing period includes of each metric, what use beyond it costs, and when that is used up.

Belongs here: this arithmetic, exact and without tables. Does not belong here: summing use, invoices.

The warehouse has the same rule in `int_period_allowances` and `invoice_lines`, and a test compares the two.
What each plan includes counts for its days (UTC); the day of a change has the new terms, of several changes a
day the last. Overage is priced by the plan in which the period ends: at the catalogue's price, else at the
plan's own effective rate, the month's price divided by what it includes; in proportion and not by begun
thousands. Each metric is an invoice line, and is rounded there once, half to even. A metric of which a period
includes nothing has no limit and no overage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise

from apex_pipelines.platform.catalogue import Metric, Plan


@dataclass(frozen=True, slots=True)
class Terms:
    """What a subscription costs and includes a month, from an instant until the next terms.

    Attributes
    ----------
    valid_from : datetime
        Aware instant.
    base_price_cents : int
        In minor units.
    contracted : mapping
        By metric, in its unit, what the subscription includes where that is its own and not the plan's.
    """

    valid_from: datetime
    plan_type: str
    base_price_cents: int
    contracted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a billing period includes of one metric.

    Attributes
    ----------
    included : int
        In storage units, above zero.
    price_cents, price_quantity : int
        So many minor units for so much overage, in storage units; a quantity of 0 means that it is free.
    """

    included: int
    price_cents: int
    price_quantity: int

    def overage(self, used: int) -> int:
        """Use beyond what is included, in storage units."""
        return max(used - self.included, 0)

    def overage_cost_cents(self, used: int) -> int:
        """Price of the overage in minor units, rounded half to even: one invoice line."""
        if not self.price_quantity:
            return 0
        return round(Fraction(self.overage(used) * self.price_cents, self.price_quantity))

    def remaining(self, used: int) -> int:
        """What is left, in storage units; zero when all is used."""
        return max(self.included - used, 0)

    def percent_used(self, used: int) -> float:
        """Per cent of what is included, to two places; over 100 beyond it, never below 0."""
        return float(round(Fraction(max(used, 0) * 100, self.included), 2))


def allowances(
    history: Sequence[Terms],
    start: datetime,
    end: datetime,
    plans: Mapping[str, Plan],
    metrics: Mapping[str, Metric],
    *,
    trial: bool,
) -> dict[str, Allowance]:
    """What the billing period ``start <= t < end`` includes, by metric; metrics without a limit are absent.

    Parameters
    ----------
    history : sequence
        The subscription's terms, oldest first; those from `end` on count for nothing.
    start, end : datetime
        Aware instants; `end` as scheduled, also of a subscription that was cancelled before.
    trial : bool
        Whether the period is the trial, in which overage costs nothing.
    """
    first, after = _day(start), _day(end)
    length = max((after - first).days, 1)  # a trial cut short by hand may begin and end on one day
    held = [terms for terms in history if terms.valid_from < end]
    until = [min(_day(following.valid_from), after) for _, following in pairwise(held)] + [after]
    summed: dict[str, int] = {}
    prices: dict[str, tuple[int, int]] = {}
    for terms, day_after in zip(held, until, strict=False):
        days = max((day_after - max(first, _day(terms.valid_from))).days, 0)
        for name, catalogued in plans[terms.plan_type].allowances.items():
            unit = 10 ** metrics[name].scale
            included = terms.contracted.get(name, catalogued.included_units) * unit
            summed[name] = summed.get(name, 0) + included * days
            if catalogued.overage_price_cents is None or catalogued.overage_units is None:
                prices[name] = (terms.base_price_cents, included)
            else:
                prices[name] = (catalogued.overage_price_cents, catalogued.overage_units * unit)
    prorated = {name: round(Fraction(total, length)) for name, total in summed.items()}
    return {
        name: Allowance(included, 0 if trial else prices[name][0], prices[name][1])
        for name, included in prorated.items()
        if included > 0
    }


def _day(instant: datetime) -> date:
    return instant.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class Projection:
    """Whether use passes what is included before the period ends, and the day that reaches it, or None."""

    will_exceed: bool
    reached_on: date | None


def project(
    allowance: Allowance, daily: Mapping[date, int], start: datetime, end: datetime, now: datetime
) -> Projection:
    """Carry the period's use so far on at its average rate.

    Parameters
    ----------
    daily : mapping
        Use by UTC day inside the period, in storage units; days without use may be absent.
    start, end, now : datetime
        Aware UTC instants; the period is ``start <= t < end``.

    Returns
    -------
    Projection
        `reached_on` is the day on which the running total first stood at the limit, when it does so now; else
        the day on which it will, when that is before the period's end.
    """
    used = sum(daily.values())
    if used >= allowance.included:
        running = 0
        for day in sorted(daily):
            running += daily[day]
            if running >= allowance.included:
                return Projection(used > allowance.included or now < end, day)
    elapsed = now - start
    if used <= 0 or elapsed <= timedelta(0):
        return Projection(False, None)
    microsecond = timedelta(microseconds=1)
    needed = Fraction(elapsed // microsecond * allowance.included, used)
    if needed >= (end - start) // microsecond:
        return Projection(False, None)
    return Projection(True, (start + int(needed) * microsecond).date())
