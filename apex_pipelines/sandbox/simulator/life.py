"""What happens to a simulated customer: engagement, plan changes, payments, and leaving with its cause.

Belongs here: the hidden story from which telemetry (`telemetry.py`) and accounts (`accounts.py`) follow. It
is a function of (seed, customer), so that a run after a kill tells the same story.

Leaving is a matter of chance whose odds rise as engagement falls, errors last and payments fail. Some leave
out of the blue and some of the disengaged come back: so a good model foresees much of it and never all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import numpy.typing as npt

from apex_pipelines.billing.periods import add_months
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.platform import catalogue
from apex_pipelines.sandbox.simulator.population import Archetype, SimulatedCustomer, Simulation

# Chance a day of leaving: by itself, and how much disengagement adds at most.
_SUDDEN_HAZARD = 0.0002
_DISENGAGED_HAZARD = 0.034
# Chance a day of starting to disengage, by kind; those who stall begin at a drawn day as well.
_ONSET = {Archetype.GROWING: 0.0007, Archetype.ENTERPRISE: 0.0004}
_ONSET_OTHERS = 0.0012
_DUNNING_DAYS = (0, 3, 4, 7)
_FAILURES = ("card_declined", "insufficient_funds", "expired_card")


@dataclass(frozen=True, slots=True)
class PlanChange:
    """From `at` on, the customer has these terms."""

    at: datetime
    plan_type: str
    base_price_cents: int
    included_impressions: int


@dataclass(frozen=True, slots=True)
class PaymentStory:
    """One attempt to collect an invoice, and the subscription's status after it."""

    invoice_id: str
    attempt_number: int
    at: datetime
    amount_cents: int
    failure_code: str | None
    status_after: SubscriptionStatus


@dataclass(slots=True)
class Life:
    """A customer's story.

    Attributes
    ----------
    first_day : date
        Day 0 of the arrays: signing up, or the start of the simulation for those who came before.
    impressions : array of float, shape (days,)
        Expected impressions; 0 on days without telemetry.
    engagement : array of float, shape (days,)
        1 is fully engaged, 0 is gone.
    errors : array of float, shape (days,)
        Factor on the customer's own error rate.
    ends_at : datetime or None
        When the subscription ends within the simulation.
    cause : str or None
        Why: disengaged, errors, sudden, unpaid, trial_over.
    """

    customer: SimulatedCustomer
    first_day: date
    impressions: npt.NDArray[np.float64]
    engagement: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    trial_end: datetime | None
    ends_at: datetime | None = None
    cause: str | None = None
    plan_changes: list[PlanChange] = field(default_factory=list)
    payments: list[PaymentStory] = field(default_factory=list)

    @property
    def last_day(self) -> date:
        """Day after the last simulated one."""
        return self.first_day + timedelta(days=len(self.impressions))

    def terms_at(self, instant: datetime) -> PlanChange:
        """The plan and terms that hold at an instant."""
        customer = self.customer
        terms = PlanChange(
            customer.created_at,
            customer.plan_type,
            customer.base_price_cents,
            customer.included_impressions,
        )
        for change in self.plan_changes:
            if change.at <= instant:
                terms = change
        return terms

    def status_at(self, instant: datetime) -> SubscriptionStatus:
        """The subscription's status at an instant after signing up."""
        if self.ends_at is not None and self.ends_at < instant:
            return SubscriptionStatus.CANCELED
        status = SubscriptionStatus.ACTIVE
        if self.trial_end is not None and instant < self.trial_end:
            status = SubscriptionStatus.TRIALING
        for payment in self.payments:
            if payment.at < instant:
                status = payment.status_after
        return status


def live(simulation: Simulation, customer: SimulatedCustomer) -> Life:
    """Let one customer live until the end of the simulation, or until they leave."""
    rng = np.random.default_rng([simulation.seed, 2, customer.index])
    first_day = max(customer.created_at.date(), simulation.start_date)
    days = (simulation.end_date - first_day).days
    trial_days = catalogue.plans()[customer.plan_type].trial_days if customer.trial else 0
    trial_end = customer.created_at + timedelta(days=trial_days) if trial_days else None
    engagement, errors, onset_errors = _engagement(customer, days, rng)
    story = Life(
        customer=customer,
        first_day=first_day,
        impressions=_impressions(simulation, customer, first_day, engagement, rng),
        engagement=engagement,
        errors=errors,
        trial_end=trial_end,
    )
    _grow_out_of_plan(story, rng)
    _leave(story, onset_errors, rng)
    _pay(story, simulation, rng)
    _fall_silent(story)
    return story


def _engagement(
    customer: SimulatedCustomer, days: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Engagement and error factor by day, and on which days errors drive the customer away."""
    engagement, errors = np.ones(days), np.ones(days)
    driven = np.zeros(days, dtype=bool)
    onset = rng.random(days) < _ONSET.get(customer.archetype, _ONSET_OTHERS)
    if customer.archetype is Archetype.STALLING and days:
        onset[int(rng.integers(days))] = True
    day = 0
    while day < days:
        if not onset[day]:
            day += 1
            continue
        # A phase of disengagement: down over some days to a floor, and for some up again.
        fall = int(rng.integers(4, 45))
        floor = float(rng.uniform(0.05, 0.55))
        stays = int(rng.integers(10, 60))
        recovers = rng.random() < (0.15 if customer.archetype is Archetype.STALLING else 0.5)
        by_errors = rng.random() < 0.35
        path = np.concatenate([np.linspace(1, floor, fall), np.full(stays, floor)])
        path = np.concatenate([path, np.linspace(floor, 1, 20) if recovers else np.full(days, floor)])
        span = min(len(path), days - day)
        engagement[day : day + span] = path[:span]
        if by_errors:
            errors[day : day + span] *= 1 + 4 * (1 - path[:span])
            driven[day : day + span] = True
        day += span
    # Trouble that leads nowhere: a bad release, fixed after a few days.
    for start in np.flatnonzero(rng.random(days) < 0.004):
        errors[start : start + 6] *= 4
    # Holidays and vacations look like disengagement and aren't.
    for start in np.flatnonzero(rng.random(days) < 0.0025):
        engagement[start : start + 12] *= 0.65
    return engagement, errors, driven


def _impressions(
    simulation: Simulation,
    customer: SimulatedCustomer,
    first_day: date,
    engagement: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    days = len(engagement)
    offset = (first_day - simulation.start_date).days + np.arange(days)
    weekday = (first_day.weekday() + np.arange(days)) % 7
    shocks = rng.normal(0, customer.noise, days)
    wander = np.zeros(days)
    for day in range(1, days):
        wander[day] = 0.7 * wander[day - 1] + shocks[day]
    season = 1 + customer.seasonal_swing * np.sin(2 * np.pi * offset / 90 + customer.seasonal_phase)
    level = (
        customer.impressions
        * np.exp(customer.daily_growth * np.arange(days) + wander)
        * season
        * np.where(weekday >= 5, customer.weekend_factor, 1.0)
        # Use follows engagement with some looseness: apps in the field go on by themselves.
        * engagement ** rng.uniform(0.7, 1.6)
    )
    if customer.archetype is Archetype.TRIAL_ONLY:
        level *= 0.04
    if customer.integrates_after_days is None:
        return np.zeros(days)
    starts = customer.created_at.date() + timedelta(days=customer.integrates_after_days)
    level[: max((starts - first_day).days, 0)] = 0
    # An app is rolled out over its first weeks.
    age = (first_day - starts).days + np.arange(days)
    return np.asarray(level * np.clip((age + 1) / 14, 0.05, 1))


def _grow_out_of_plan(story: Life, rng: np.random.Generator) -> None:
    """Upgrades: whoever uses more than the plan includes, month after month, may take the next one."""
    order = [plan for plan in catalogue.plans() if plan != "enterprise"]
    for start in range(30, len(story.impressions), 30):
        at = _noon(story.first_day + timedelta(days=start))
        terms = story.terms_at(at)
        over = story.impressions[start - 30 : start].sum() > 1.1 * terms.included_impressions
        wants = rng.random() < 0.35
        if over and wants and terms.plan_type in order[:-1]:
            plan = catalogue.plans()[order[order.index(terms.plan_type) + 1]]
            change = PlanChange(at, plan.plan_type, plan.base_price_cents, plan.included("impressions"))
            story.plan_changes.append(change)


def _leave(story: Life, errors_drive: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    days = len(story.engagement)
    draws, second = rng.random(days), int(rng.integers(86_400))
    customer = story.customer
    if customer.archetype is Archetype.TRIAL_ONLY and story.trial_end is not None:
        if story.trial_end.date() < story.last_day:
            story.ends_at, story.cause = story.trial_end, "trial_over"
        return
    hazard = _SUDDEN_HAZARD + _DISENGAGED_HAZARD * np.clip(1 - story.engagement - 0.2, 0, 1) ** 1.3
    if customer.archetype is Archetype.NEVER_INTEGRATES:
        hazard = hazard + 0.008
    if customer.archetype is Archetype.ENTERPRISE:
        hazard = hazard * 0.5
    # Nobody leaves within a contract's first days.
    tenure = (story.first_day - customer.created_at.date()).days + np.arange(days)
    hazard = np.where(tenure < 10, 0, hazard)
    gone = np.flatnonzero(draws < hazard)
    if gone.size:
        day = int(gone[0])
        story.ends_at = datetime.combine(story.first_day, time(), UTC) + timedelta(days=day, seconds=second)
        if errors_drive[day]:
            story.cause = "errors"
        else:
            story.cause = "disengaged" if story.engagement[day] < 0.8 else "sudden"


def _invoices(story: Life, simulation: Simulation) -> Iterator[tuple[int, datetime]]:
    """Number and due time of each invoice in, and 90 days before, the simulation."""
    anchor = story.trial_end or story.customer.created_at
    earliest = _noon(simulation.start_date - timedelta(days=90))
    months = 0
    while (due := add_months(anchor, months)) < _midnight(simulation.end_date):
        if due >= earliest:
            yield months, due
        months += 1


def _pay(story: Life, simulation: Simulation, rng: np.random.Generator) -> None:
    """Invoices and attempts at them; who never pays one is suspended, and most of those leave."""
    late = story.customer.archetype is Archetype.PAYS_LATE
    for number, due in _invoices(story, simulation):
        # Drawn for every invoice, whatever becomes of it, so that one story doesn't shift the next.
        draws, fate, days_until = rng.random(len(_DUNNING_DAYS)), rng.random(), int(rng.integers(5, 11))
        code = _FAILURES[int(rng.integers(len(_FAILURES)))]
        amount = story.terms_at(due).base_price_cents
        if amount == 0:
            continue
        if story.ends_at is not None and due >= story.ends_at:
            return
        day = (due.date() - story.first_day).days
        engaged = story.engagement[day] if 0 <= day < len(story.engagement) else 1.0
        fails_first = 0.38 if late else 0.03 + 0.25 * (1 - engaged)
        fails_again = 0.58 if engaged > 0.6 else 0.8
        invoice = f"in_{story.customer.external_ref}_{number}"
        paid = False
        for attempt, after in enumerate(_DUNNING_DAYS, start=1):
            at = due + timedelta(days=after, hours=2)
            if story.ends_at is not None and at >= story.ends_at:
                return
            failed = bool(draws[attempt - 1] < (fails_first if attempt == 1 else fails_again))
            last = attempt == len(_DUNNING_DAYS)
            status = SubscriptionStatus.ACTIVE
            if failed:
                status = SubscriptionStatus.SUSPENDED if last else SubscriptionStatus.PAST_DUE
            story.payments.append(
                PaymentStory(invoice, attempt, at, amount, code if failed else None, status)
            )
            if not failed:
                paid = True
                break
        if paid or due.date() < simulation.start_date:
            continue
        settled = due + timedelta(days=_DUNNING_DAYS[-1] + days_until)
        if fate < 0.7:
            if settled < _midnight(simulation.end_date) and (
                story.ends_at is None or settled < story.ends_at
            ):
                story.ends_at, story.cause = settled, "unpaid"
            return
        if story.ends_at is None or settled < story.ends_at:
            story.payments.append(
                PaymentStory(
                    invoice, len(_DUNNING_DAYS) + 1, settled, amount, None, SubscriptionStatus.ACTIVE
                )
            )


def _fall_silent(story: Life) -> None:
    """No use while the subscription is suspended (keys don't work then), and nothing once it has ended."""
    for number, payment in enumerate(story.payments):
        if payment.status_after is SubscriptionStatus.SUSPENDED:
            following = story.payments[number + 1].at.date() if number + 1 < len(story.payments) else date.max
            first = max((payment.at.date() - story.first_day).days + 1, 0)
            story.impressions[first : max((following - story.first_day).days, 0)] = 0
    if story.ends_at is None:
        return
    last = max((story.ends_at.date() - story.first_day).days, 0)
    story.impressions = story.impressions[:last]
    story.engagement = story.engagement[:last]
    story.errors = story.errors[:last]
    story.plan_changes = [change for change in story.plan_changes if change.at < story.ends_at]
    story.payments = [payment for payment in story.payments if payment.at < story.ends_at]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)
