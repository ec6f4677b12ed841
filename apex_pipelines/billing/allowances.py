"""What a plan includes of each metric, what use beyond it costs, and when the included quantity is used up.

Belongs here: this arithmetic, exact and without tables. Does not belong here: summing use, invoices.

The rule of price: overage is charged at the plan's own effective rate, the month's price divided by what it
includes, in proportion and not by begun thousands. Each metric is an invoice line, and is rounded there once,
half to even. A metric of which a plan includes nothing has no limit and no overage, as in
`marts.usage_by_period`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction

from apex_pipelines.platform.catalogue import Metric, Plan


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a billing period includes of one metric.

    Attributes
    ----------
    included : int
        In storage units, above zero.
    price_cents : int
        Price of the period for which `included` is had, in minor units.
    """

    included: int
    price_cents: int

    def overage(self, used: int) -> int:
        """Use beyond what is included, in storage units."""
        return max(used - self.included, 0)

    def overage_cost_cents(self, used: int) -> int:
        """Price of the overage in minor units, rounded half to even: one invoice line."""
        return round(Fraction(self.overage(used) * self.price_cents, self.included))

    def remaining(self, used: int) -> int:
        """What is left, in storage units; zero when all is used."""
        return max(self.included - used, 0)

    def percent_used(self, used: int) -> float:
        """Per cent of what is included, to two places; over 100 beyond it, never below 0."""
        return float(round(Fraction(max(used, 0) * 100, self.included), 2))


def allowances(
    plan: Plan, metrics: Mapping[str, Metric], *, base_price_cents: int, included_impressions: int
) -> dict[str, Allowance]:
    """What a subscription to `plan` includes, by metric; metrics without a limit are absent.

    Parameters
    ----------
    base_price_cents, included_impressions : int
        The subscription's own terms, which may differ from the plan's.
    """
    included = {
        "impressions": included_impressions,
        "api_calls": plan.included("api_calls"),
        "data_transfer": plan.included("data_transfer"),
    }
    return {
        name: Allowance(units * 10 ** metrics[name].scale, base_price_cents)
        for name, units in included.items()
        if units > 0
    }


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
