"""What subscriptions, events and payments amount to in money: the other half of the test of the marts.

Belongs here: the rules of docs/decisions/0019 as a simulation from day to day with fractions. Does not belong
here: any code of the product, any SQL.
"""

from __future__ import annotations

import calendar
import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).parents[2] / "dbt_project" / "seeds"
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
PAYING = ("active", "past_due")
STORAGE = {"impressions": 1, "api_calls": 1, "data_transfer": 10**9}  # storage units of one unit
MICROS_A_CENT = 10_000


def _seed(name: str) -> list[dict[str, str]]:
    with (SEEDS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


ALLOWANCES = {(row["plan_type"], row["metric_type"]): row for row in _seed("plan_allowances")}
BANDS = [
    (int(row["up_to_revenue_cents"]) if row["up_to_revenue_cents"] else None, int(row["fee_basis_points"]))
    for row in _seed("platform_fee_bands")
]


@dataclass(frozen=True)
class Terms:
    """Terms from an instant on; `number` orders those of one instant."""

    at: datetime
    number: int
    plan: str
    status: str
    price: int
    impressions: int
    api_calls: int | None
    gigabytes: int | None
    fee_rate: int | None
    least_fee: int

    def order(self) -> tuple[datetime, int]:
        return self.at, self.number

    def included(self, metric: str) -> int:
        own = {"impressions": self.impressions, "api_calls": self.api_calls, "data_transfer": self.gigabytes}
        units = own[metric]
        return (int(ALLOWANCES[self.plan, metric]["included_units"]) if units is None else units) * STORAGE[
            metric
        ]

    def overage_price(self, metric: str) -> tuple[int, int]:
        row = ALLOWANCES[self.plan, metric]
        if row["overage_units"]:
            return int(row["overage_price_cents"]), int(row["overage_units"]) * STORAGE[metric]
        return self.price, self.included(metric)


@dataclass
class Subscription:
    id: str
    customer: str
    started: datetime
    trial_end: datetime | None
    cancelled: datetime | None = None
    changes: list[Terms] = field(default_factory=list)

    def terms(self, instant: datetime) -> Terms:
        """What was agreed last by the instant."""
        return max((each for each in self.changes if each.at <= instant), key=Terms.order)

    def status(self, instant: datetime) -> str:
        """State at an instant at which the subscription exists."""
        if self.trial_end is not None and instant < self.trial_end:
            return "trialing"
        status = self.terms(instant).status
        return "active" if status == "trialing" else status

    def exists(self, instant: datetime) -> bool:
        return self.started <= instant and (self.cancelled is None or instant < self.cancelled)

    def mrr(self, instant: datetime) -> int:
        if not self.exists(instant) or self.status(instant) not in PAYING:
            return 0
        return self.terms(instant).price


@dataclass(frozen=True)
class Event:
    customer: str
    at: datetime
    metric: str
    quantity: int


@dataclass(frozen=True)
class Payment:
    customer: str
    invoice: str
    attempt: int
    succeeded: bool
    cents: int
    at: datetime


@dataclass(frozen=True)
class Period:
    subscription: Subscription
    start: datetime
    scheduled: datetime
    is_trial: bool

    @property
    def end(self) -> datetime:
        cancelled = self.subscription.cancelled
        return self.scheduled if cancelled is None else min(self.scheduled, cancelled)

    def days(self) -> list[date]:
        count = (self.scheduled.date() - self.start.date()).days
        return [self.start.date() + timedelta(days=number) for number in range(count)]


def half_even(value: Fraction) -> int:
    """Written out, so that it is not the language's own rounding."""
    whole, rest = divmod(value, 1)
    if rest * 2 == 1:
        return int(whole) + int(whole) % 2
    return int(whole) + (rest * 2 > 1)


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def month_of(day: date) -> date:
    return day.replace(day=1)


def month_after(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _later(anchor: datetime, months: int) -> datetime:
    month = month_of(anchor.date())
    for _ in range(months):
        month = month_after(month)
    last = calendar.monthrange(month.year, month.month)[1]
    return anchor.replace(year=month.year, month=month.month, day=min(anchor.day, last))


@dataclass
class Books:
    """Everything known at `now`, and each mart's rows as they must be."""

    now: datetime
    subscriptions: list[Subscription]
    events: list[Event]
    payments: list[Payment]

    def __post_init__(self) -> None:
        self.last = self.now - TICK
        self.month = month_of(self.last.date())
        self.month_end = midnight(month_after(self.month))
        self.subscriptions = [each for each in self.subscriptions if each.started < self.now]
        for subscription in self.subscriptions:
            subscription.changes = [each for each in subscription.changes if each.at < self.now]
        self.customers = sorted(
            {each.customer for each in self.subscriptions} | {e.customer for e in self.events}
        )
        self.used: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self.used[event.customer].append(event)
        self.held: dict[str, list[Subscription]] = defaultdict(list)
        for subscription in self.subscriptions:
            self.held[subscription.customer].append(subscription)
        self.moves = [move for customer in self.customers for move in self._movements(customer)]

    # Billing periods and their lines.

    def periods(self) -> Iterator[Period]:
        for subscription in self.subscriptions:
            until = min(subscription.cancelled or self.now, self.now)
            trial_end = subscription.trial_end
            if trial_end is not None:
                yield Period(subscription, subscription.started, trial_end, True)
            anchor, number = trial_end or subscription.started, 0
            while _later(anchor, number) < until:
                yield Period(subscription, _later(anchor, number), _later(anchor, number + 1), False)
                number += 1

    def _day_terms(self, period: Period) -> list[Terms]:
        """Of each day the terms at its end."""
        return [
            period.subscription.terms(min(midnight(day + DAY) - TICK, self.last)) for day in period.days()
        ]

    def base_price(self, period: Period) -> int:
        if period.is_trial:
            return 0
        subscription, total = period.subscription, 0
        begins = [
            period.start,
            *(each.at for each in subscription.changes if period.start < each.at < period.scheduled),
        ]
        served = [at for at in begins if subscription.status(at) != "suspended"]
        for day, terms in zip(period.days(), self._day_terms(period), strict=True):
            if served and min(served) < midnight(day + DAY):
                total += terms.price
        return half_even(Fraction(total, len(period.days())))

    def included(self, period: Period, metric: str) -> int:
        total = sum(terms.included(metric) for terms in self._day_terms(period))
        return half_even(Fraction(total, len(period.days())))

    def use(self, period: Period, metric: str) -> int:
        return sum(
            event.quantity
            for event in self.used[period.subscription.customer]
            if event.metric == metric and period.start <= event.at < period.end
        )

    def end_terms(self, period: Period) -> Terms:
        return period.subscription.terms(min(period.scheduled - TICK, self.last))

    def overage_cents(self, period: Period, metric: str, used: int) -> int:
        included = self.included(period, metric)
        price, quantity = self.end_terms(period).overage_price(metric)
        if period.is_trial or not quantity or not included:
            return 0
        return half_even(Fraction(max(0, used - included) * price, quantity))

    @cached_property
    def lines(self) -> list[tuple[Any, ...]]:
        """customer, subscription, type, metric, start, end, is_final, month, quantity, cents."""
        rows: list[tuple[Any, ...]] = []
        for period in self.periods():
            subscription, end = period.subscription, period.end
            final = int(end <= self.now)
            named = (subscription.customer, subscription.id)
            bounds = (period.start, end, final)
            price = self.base_price(period)
            rows.append((*named, "subscription", None, *bounds, month_of(period.start.date()), None, price))
            for metric in STORAGE:
                included, used = self.included(period, metric), self.use(period, metric)
                if included and used > included:
                    cents = self.overage_cents(period, metric, used)
                    month = month_of((end - TICK).date())
                    rows.append((*named, "overage", metric, *bounds, month, used - included, cents))
        for customer, month, revenue, cents, _ in self.fees():
            bounds = (
                midnight(month),
                midnight(month_after(month)),
                int(midnight(month_after(month)) <= self.now),
            )
            rows.append((customer, None, "platform_fee", "mediated_revenue", *bounds, month, revenue, cents))
        return rows

    def fees(self) -> Iterator[tuple[str, date, int, int, int]]:
        """customer, month, revenue, fee, fee if revenue goes on."""
        first = min(each.started for each in self.subscriptions)
        for customer in self.customers:
            revenue: dict[date, int] = defaultdict(int)
            for event in self.used[customer]:
                if event.metric == "mediated_revenue":
                    revenue[month_of(event.at.date())] += event.quantity
            month = month_of(min([first.date(), *revenue]))
            while month <= self.month:
                end = midnight(month_after(month))
                rate, least = None, 0
                for subscription in self.held[customer]:
                    instant = min(end, self.now) - TICK
                    if subscription.exists(instant):
                        terms = subscription.terms(instant)
                        rate = terms.fee_rate
                        least = terms.least_fee if subscription.status(instant) in PAYING else 0
                if month in revenue or least:
                    seen = (min(end, self.now) - midnight(month)) // TICK
                    whole = (end - midnight(month)) // TICK
                    projected = half_even(Fraction(revenue[month] * whole, seen))
                    now, then = (_fee(micros, rate, least) for micros in (revenue[month], projected))
                    yield customer, month, revenue[month], now, then
                month = month_after(month)

    def forecast(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By customer and type of line: what is fixed and what is added."""
        found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for customer, _, kind, *_, month, _, cents in self.lines:
            if month == self.month:
                found[customer, kind][0] += cents
        for period in self.periods():
            subscription = period.subscription
            if period.end <= self.now:
                continue
            newest = max(subscription.changes, key=Terms.order)
            goes_on = subscription.cancelled is None or subscription.cancelled > period.scheduled
            if goes_on and period.scheduled < self.month_end and newest.status != "suspended":
                found[subscription.customer, "subscription"][1] += newest.price
            if period.is_trial or period.end > self.month_end:
                continue
            for metric in STORAGE:
                if self.included(period, metric):
                    used = self.use(period, metric)
                    share = Fraction((period.end - period.start) // TICK, (self.now - period.start) // TICK)
                    carried = self.overage_cents(period, metric, half_even(used * share))
                    found[subscription.customer, "overage"][1] += carried - self.overage_cents(
                        period, metric, used
                    )
        for customer, month, _, now, then in self.fees():
            if month == self.month:
                found[customer, "platform_fee"][1] += then - now
        return {key: (fixed, added) for key, (fixed, added) in found.items()}

    def revenue(self) -> dict[date, tuple[int, int, int, int]]:
        """By month: subscriptions, overage, platform fees, collected."""
        found: dict[date, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        kinds = ["subscription", "overage", "platform_fee"]
        for _, _, kind, *_, month, _, cents in self.lines:
            if month <= self.month:
                found[month][kinds.index(kind)] += cents
        for payment in self.payments:
            if payment.succeeded:
                found[month_of(payment.at.date())][3] += payment.cents
        return {month: (row[0], row[1], row[2], row[3]) for month, row in found.items()}

    # Recurring revenue.

    def _movements(self, customer: str) -> Iterator[tuple[str, date, str, int, int]]:
        held = self.held[customer]
        if not held:
            return
        day, before, paid = min(each.started for each in held).date(), 0, False
        while day <= self.last.date():
            instant = min(midnight(day + DAY) - TICK, self.last)
            after = sum(each.mrr(instant) for each in held)
            if after != before:
                kind = "expansion" if after > before else "contraction"
                kind = "churn" if not after else "reactivation" if not before else kind
                yield customer, day, kind if paid else "new", before, after
                paid = True
            before, day = after, day + DAY

    def mrr_by_month(self) -> list[tuple[Any, ...]]:
        """month, opening, new, expansion, contraction, churn, reactivation, closing, customers."""
        rows: list[tuple[Any, ...]] = []
        month = month_of(min(move[1] for move in self.moves))
        kinds = ["new", "expansion", "contraction", "churn", "reactivation"]
        while month <= self.month:
            inside = [move for move in self.moves if month_of(move[1]) == month]
            by_kind = [sum(m[4] - m[3] for m in inside if m[2] == kind) for kind in kinds]
            at_end = self._mrr_at(midnight(month_after(month)))
            rows.append((
                month, sum(self._mrr_at(midnight(month)).values()), *by_kind,
                sum(at_end.values()), sum(1 for cents in at_end.values() if cents),
            ))  # fmt: skip
            month = month_after(month)
        return rows

    def _mrr_at(self, instant: datetime) -> dict[str, int]:
        """MRR of each customer just before the instant, or now."""
        instant = min(instant, self.now) - TICK
        return {
            customer: sum(each.mrr(instant) for each in self.held[customer]) for customer in self.customers
        }

    def cohorts(self) -> list[tuple[Any, ...]]:
        """cohort month, months since, customers, retained, MRR at the start, MRR then."""
        began = {move[0]: (month_of(move[1]), move[4]) for move in self.moves if move[2] == "new"}
        rows = []
        for cohort in sorted({month for month, _ in began.values()}):
            members = {customer: cents for customer, (month, cents) in began.items() if month == cohort}
            month, since = cohort, 0
            while month <= self.month:
                then = {
                    c: cents
                    for c, cents in self._mrr_at(midnight(month_after(month))).items()
                    if c in members
                }
                retained = sum(1 for cents in then.values() if cents)
                rows.append(
                    (cohort, since, len(members), retained, sum(members.values()), sum(then.values()))
                )
                month, since = month_after(month), since + 1
        return rows

    def trials(self) -> dict[date, tuple[int, int, int, int]]:
        """By month of their start: trials, running, converted, ended."""
        found: dict[date, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for each in self.subscriptions:
            if each.trial_end is None:
                continue
            instants = [
                each.trial_end,
                *(change.at for change in each.changes if change.at >= each.trial_end),
            ]
            paid = any(each.mrr(instant) for instant in instants if instant < self.now)
            over = min(each.trial_end, each.cancelled or each.trial_end) < self.now
            row = found[month_of(each.started.date())]
            row[0] += 1
            row[2 if paid else 3 if over else 1] += 1
        return {month: (row[0], row[1], row[2], row[3]) for month, row in found.items()}

    def invoices(self) -> list[tuple[Any, ...]]:
        """invoice, status, attempts, cents paid, days to pay."""
        rows = []
        for invoice in sorted({payment.invoice for payment in self.payments}):
            attempts = [payment for payment in self.payments if payment.invoice == invoice]
            paid = [payment for payment in attempts if payment.succeeded]
            open_ones = [
                each for each in self.held[attempts[0].customer]
                if each.cancelled is None or each.cancelled.date() > self.last.date()
            ]  # fmt: skip
            asked = any(self._present_status(each) != "suspended" for each in open_ones)
            status = "paid" if paid else "open" if asked else "uncollectible"
            days = (paid[0].at.date() - min(each.at for each in attempts).date()).days if paid else None
            rows.append((invoice, status, len(attempts), sum(each.cents for each in paid), days))
        return rows

    def _present_status(self, subscription: Subscription) -> str:
        return subscription.terms(self.last).status


def _fee(micros: int, contract: int | None, least: int) -> int:
    bounds = [bound for bound, _ in BANDS if bound is not None]
    band = sum(1 for bound in bounds if Fraction(micros, MICROS_A_CENT) > bound)
    rate = contract if band == len(bounds) and contract is not None else BANDS[band][1]
    return max(least, half_even(Fraction(max(micros, 0) * rate, 10_000 * MICROS_A_CENT)))
