"""The customer and operations marts, each computed again from what happened, for every customer and day.

The models are SQL over daily sums, windows and maps; here it is plain Python over single events. What other
checks hold already is taken from the warehouse: billing periods, their allowances and the terms of
subscriptions.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from apex_pipelines.platform.catalogue import SEEDS, metrics, plans, thresholds
from tests.warehouse_models.conftest import Models
from tests.warehouse_models.customer_world import NEVER, USAGE, Event, Subscription, World, make_world, tell

RUNS = [datetime(2026, month, 2, 8, tzinfo=UTC) for month in (3, 5, 6)]
HORIZON = timedelta(days=30)
DAY = timedelta(days=1)
Rows = list[dict[str, Any]]


class Known:
    """What is known of the world at the instant of a run."""

    def __init__(self, world: World, now: datetime) -> None:
        self.world, self.now, self.today = world, now, now.date()
        self.customers = {name: of for name, of in world.customers.items() if of[1] <= now}
        first: dict[tuple[str, str], Event] = {}
        for event in sorted(world.events, key=lambda event: event.accepted_at):
            if event.accepted_at <= now and event.customer in world.customers:
                first.setdefault((event.customer, event.id), event)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.sums: Counter[tuple[str, str, date]] = Counter()
        for event in first.values():
            self.events[event.customer].append(event)
            self.sums[event.customer, event.metric, event.at.date()] += event.quantity
        self.payments = [payment for payment in world.payments if payment.at <= now]
        self.subscriptions: dict[str, list[Subscription]] = defaultdict(list)
        for subscription in world.subscriptions:
            if subscription.started_at <= now:
                self.subscriptions[subscription.customer].append(subscription)

    def used(self, customer: str, metric: str, days_back: int, until: int = 0) -> int:
        """Sum of a metric over [today - days_back, today - until)."""
        return sum(
            self.sums[customer, metric, self.today - timedelta(days=back)]
            for back in range(until + 1, days_back + 1)
        )

    def known_since(self, customer: str) -> date:
        days = [event.at.date() for event in self.events[customer] if event.at.date() <= self.today]
        return min([self.customers[customer][1].date(), *days])

    def ends(self, subscription: Subscription) -> datetime:
        return subscription.cancelled_at if subscription.cancelled_at <= self.now else NEVER

    def current(self, customer: str) -> Subscription | None:
        """The open subscription, else the last that began."""
        mine = self.subscriptions[customer]
        return max(mine, key=lambda s: (self.is_open(s), s.started_at), default=None)

    def is_open(self, subscription: Subscription) -> bool:
        return self.ends(subscription).date() > self.today

    def terms(self, subscription: Subscription) -> Any:
        return [terms for terms in subscription.changes if terms.since <= self.now][-1]

    def status(self, subscription: Subscription) -> str:
        if self.ends(subscription) < NEVER:
            return "canceled"
        trial = subscription.trial_end
        return "trialing" if trial and trial > self.now else str(self.terms(subscription).status)

    def price(self, subscription: Subscription) -> int:
        return plans()[self.terms(subscription).plan].base_price_cents


def limit(rule: str, parameter: str) -> float:
    return float(thresholds(rule)[parameter][0])


def cents(quantity: int, price: int, per: int) -> int:
    return round(Fraction(quantity * price, per)) if per else 0


def health(known: Known, customer: str) -> dict[str, tuple[float, float]] | None:
    """Component to value and points; None for who left."""
    current = known.current(customer)
    if current is not None and not known.is_open(current):
        return None
    metric = "impressions"
    if known.used(customer, metric, 30) <= 0 and known.used(customer, metric, 60, 30) <= 0:
        metric = "api_calls"
    recent, before = known.used(customer, metric, 30), known.used(customer, metric, 60, 30)
    days = (known.today - timedelta(days=30) - known.known_since(customer)).days
    pace = before * 30 / min(30, max(1, days))
    trend = 0.0 if recent <= 0 else 1.0 if pace <= 0 else recent / pace
    active = [
        day
        for (name, metric, day), quantity in known.sums.items()
        if name == customer and metric in USAGE and quantity > 0 and day < known.today
    ]
    month_ago = known.today - timedelta(days=30)
    features = {
        event.metadata["feature"]
        for event in known.events[customer]
        if event.metric == "feature_used" and month_ago <= event.at.date() < known.today
    }
    failures = [
        payment
        for payment in known.payments
        if payment.customer == customer
        and payment.status == "failed"
        and timedelta(0) < known.today - payment.at.date() <= timedelta(days=90)
    ]
    downgrade, over = 0, 0
    if current is not None:
        downgrade = int(went_down(known, customer))
        included = plans()[known.terms(current).plan].included("impressions")
        over = sum(known.used(customer, "impressions", 30 * n, 30 * (n - 1)) > included for n in (1, 2, 3))
    values = {
        "usage_trend": trend,
        "usage_recency": (known.today - max(active)).days if active else 10_000,
        "feature_adoption": len(features),
        "support_tickets": known.used(customer, "support_tickets", 30),
        "doc_views": known.used(customer, "doc_views", 30),
        "console_logins": known.used(customer, "console_logins", 30),
        "payment_failures": len(failures),
        "downgrade": downgrade,
        "overage_frequency": over,
    }
    points = {}
    with (SEEDS / "health_points.csv").open(newline="") as file:
        for rule in csv.DictReader(file):
            none, full = float(rule["value_at_zero"]), float(rule["value_at_full"])
            value = values[rule["component"]]
            share = min(1.0, max(0.0, (value - none) / (full - none)))
            points[rule["component"]] = (float(value), float(rule["max_points"]) * share)
    return points


def went_down(known: Known, customer: str) -> bool:
    """Whether the price fell in the last 90 days and is still below what it was."""
    prices = [
        (terms.since, plans()[terms.plan].base_price_cents)
        for subscription in known.subscriptions[customer]
        for terms in subscription.changes
        if terms.since <= known.now
    ]
    return any(
        before > after and before > prices[-1][1] and known.today - since.date() <= timedelta(days=90)
        for (_, before), (since, after) in pairwise(prices)
    )


def band(score: float) -> str:
    if score < limit("health", "high_risk_below"):
        return "high_risk"
    if score < limit("health", "medium_risk_below"):
        return "medium_risk"
    return "upsell" if score > limit("health", "upsell_above") else "healthy"


def has_left(known: Known, customer: str, after: date, until: date) -> bool:
    """Whether a day in (after, until] ends with no subscription open, after one that was."""
    mine = [(s.started_at.date(), known.ends(s).date()) for s in known.subscriptions[customer]]
    return any(
        after < end <= until and not any(other <= end < other_end for other, other_end in mine)
        for _, end in mine
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The two shares whose distance to what was seen is 1.96 standard errors of their own."""
    share, z = successes / n, 1.96
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def dunning(known: Known) -> dict[tuple[date, int], tuple[Any, ...]]:
    invoices: dict[str, list[Any]] = defaultdict(list)
    for payment in known.payments:
        invoices[payment.invoice].append(payment)
    cells: dict[tuple[date, int], list[tuple[bool, bool, float | None]]] = defaultdict(list)
    for attempts in invoices.values():
        failed_at: datetime | None = None
        for payment in sorted(attempts, key=lambda payment: payment.attempt):
            is_retry = failed_at is not None
            paid = payment.status == "succeeded"
            days = (payment.at - failed_at).total_seconds() / 86_400 if paid and failed_at else None
            cells[payment.at.date().replace(day=1), payment.attempt].append((is_retry, paid, days))
            if not paid and failed_at is None:
                failed_at = payment.at
    found = {}
    for key, tries in cells.items():
        retries = [paid for is_retry, paid, _ in tries if is_retry]
        waits = [days for _, _, days in tries if days is not None]
        found[key] = (
            len(tries), sum(not paid for _, paid, _ in tries), len(retries), sum(retries),
            sum(retries) / len(retries) if retries else None, sum(waits) / len(waits) if waits else None,
        )  # fmt: skip
    return found


def mail_funnel(known: Known) -> dict[tuple[str, date], Counter[str]]:
    found: dict[tuple[str, date], Counter[str]] = defaultdict(Counter)
    for mail in known.world.mails:
        if mail.queued_at > known.now:
            continue
        cell = found[mail.email_type, mail.queued_at.date()]
        state = mail.outcome if mail.processed_at or mail.outcome == "sent" else "waiting"
        told = frozenset[str]().union(*(of for _, _, of in mail.messages))
        seen = {kind.removeprefix("email.") for kind in told} - {"sent", "delivery_delayed"}
        cell.update(["queued", str(state), *seen])
    return found


def steps(known: Known, customer: str) -> dict[str, date]:
    """First day of each onboarding step but the sign-up."""
    found: dict[str, date] = {}
    for event in sorted(known.events[customer], key=lambda event: event.at):
        day = event.at.date()
        if event.metric in USAGE:
            found.setdefault("first_request", day)
        # A day that corrections brought down to nothing shows no impression.
        if event.metric == "impressions" and known.sums[customer, "impressions", day] > 0:
            found.setdefault("first_impression", day)
        if event.metric == "sdk_downloads":
            found.setdefault(f"sdk_downloaded.{event.metadata['platform']}", day)
    return {step: day for step, day in found.items() if day <= known.today}


def growth_loops(known: Known, customer: str) -> list[str]:
    current = known.current(customer)
    if current is None or not known.is_open(current) or known.status(current) == "suspended":
        return []
    recent, before = known.used(customer, "impressions", 30), known.used(customer, "impressions", 60, 30)
    found = []
    if recent > 1_000_000 and not any(e.metric == "teammates_invited" for e in known.events[customer]):
        found.append("invite_team")
    long_known = known.known_since(customer) <= known.today - timedelta(days=60)
    if long_known and before >= 100_000 and recent > 2 * before:
        found.append("case_study")
    if (nps(known, customer) or 0) > 9:
        found.append("referral")
    return sorted(found)


def nps(known: Known, customer: str) -> int | None:
    answers = [event for event in known.events[customer] if event.metric == "nps_scores"]
    return max(answers, key=lambda event: (event.at, event.id)).quantity if answers else None


def period_use(known: Known, period: dict[str, Any]) -> dict[str, int]:
    return {
        metric: sum(
            event.quantity
            for event in known.events[period["customer_id"]]
            if event.metric == metric and period["period_start"] <= event.at < period["period_end"]
        )
        for metric in USAGE
    }


def upsell(known: Known, customer: str, periods: Rows, allowances: dict[Any, Any]) -> tuple[Any, ...] | None:
    """Next plan, periods, those with overage, both costs, mean saving; None for who is no candidate."""
    current = known.current(customer)
    if current is None or not known.is_open(current) or known.status(current) == "suspended":
        return None
    plan = plans()[known.terms(current).plan]
    higher = sorted((p for p in plans().values() if p.rank > plan.rank), key=lambda p: p.rank)
    if not higher or higher[0].plan_type == "enterprise" or current.currency != "usd":
        return None
    following = higher[0]
    ended = [p for p in periods if p["subscription_id"] == current.id and p["is_ended"] and not p["is_trial"]]
    costs = []
    for period in sorted(ended, key=lambda period: period["period_start"])[-3:]:
        use, lines, over = period_use(known, period), {}, False
        for metric in ("impressions", "api_calls", "data_transfer"):
            allowance = allowances[current.id, period["period_start"], metric]
            extra = (
                max(0, use[metric] - allowance["included_quantity"]) if allowance["included_quantity"] else 0
            )
            included = following.included(metric) * 10 ** metrics()[metric].scale
            over = over or extra > 0
            lines[metric] = (
                cents(extra, allowance["overage_price_cents"], allowance["overage_price_quantity"]),
                cents(max(0, use[metric] - included), following.base_price_cents, included),
            )
        if (
            allowances[current.id, period["period_start"], "impressions"]["overage_plan_type"]
            == plan.plan_type
        ):
            now, then = (sum(line[n] for line in lines.values()) for n in (0, 1))
            costs.append((over, known.price(current) + now, following.base_price_cents + then))
    saved = sum(now - then for _, now, then in costs)
    if sum(over for over, _, _ in costs) < 2 or saved <= 2_000 * len(costs):
        return None
    return (
        following.plan_type, len(costs), sum(over for over, _, _ in costs), sum(now for _, now, _ in costs),
        sum(then for _, _, then in costs), round(Fraction(saved, len(costs))),
    )  # fmt: skip


def one_row(
    known: Known, customer: str, periods: Rows, allowances: dict[Any, Any], terms: Rows
) -> dict[str, Any]:
    """The columns of `customers` that this check is about."""
    current = known.current(customer)
    row: dict[str, Any] = {
        "nps_score": nps(known, customer),
        "teammates_invited": sum(e.metric == "teammates_invited" for e in known.events[customer]),
        "onboarding_steps": sorted([*steps(known, customer), "signed_up"]),
        "growth_loops": growth_loops(known, customer),
        "plan_since": None, "first_paid_on": None, "lifetime_paid_cents": 0, "last_payment_status": None,
        "current_period_start": None, "current_period_impressions": 0,
        "current_period_overage_impressions": 0, "current_period_overage_cents": 0,
        "upsell_saving_cents": None,
    }  # fmt: skip
    if current is None:
        return row
    history = sorted((t for t in terms if t["subscription_id"] == current.id), key=lambda t: t["valid_from"])
    for part in reversed(history):
        if part["plan_type"] != history[-1]["plan_type"]:
            break
        row["plan_since"] = part["valid_from"]
    mine = [p for p in known.payments if p.customer == customer and p.currency == current.currency]
    paid = [p for p in mine if p.status == "succeeded"]
    row["lifetime_paid_cents"] = sum(p.cents for p in paid)
    row["first_paid_on"] = min((p.at.date() for p in paid if p.cents), default=None)
    row["last_payment_status"] = max(mine, key=lambda p: p.at).status if mine else None
    candidate = upsell(known, customer, periods, allowances)
    row["upsell_saving_cents"] = candidate[-1] if candidate else None
    for period in periods:
        if period["customer_id"] == customer and not period["is_ended"]:
            use = period_use(known, period)
            row |= {
                "current_period_start": period["period_start"],
                "current_period_impressions": use["impressions"],
            }
            for metric in ("impressions", "api_calls", "data_transfer"):
                allowance = allowances.get((period["subscription_id"], period["period_start"], metric))
                included = allowance["included_quantity"] if allowance else 0
                extra = max(0, use[metric] - included) if included else 0
                if metric == "impressions":
                    row["current_period_overage_impressions"] = extra
                if allowance and not period["is_trial"]:
                    price, per = allowance["overage_price_cents"], allowance["overage_price_quantity"]
                    row["current_period_overage_cents"] += cents(extra, price, per)
    return row


def digest(known: Known, day: date, terms: Rows) -> dict[str, Any]:
    """A day's row, but for its date."""
    signed_up = [name for name, (_, created) in known.customers.items() if created.date() == day]
    open_terms = [
        t
        for t in terms
        if t["valid_from"].date() <= day and (t["valid_to"] is None or t["valid_to"].date() > day)
    ]
    paying = [t for t in open_terms if t["status"] in ("active", "past_due")]
    today = [p for p in known.payments if p.at.date() == day]
    month = [
        p for p in known.payments if p.at.date().replace(day=1) == day.replace(day=1) and p.at.date() <= day
    ]
    quantities: Counter[str] = Counter()
    active = set()
    for (customer, metric, at), quantity in known.sums.items():
        if at == day:
            quantities[metric] += quantity
            if metric in USAGE and quantity > 0:
                active.add(customer)

    def by_currency(amounts: Iterable[tuple[str, int]]) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for currency, amount in amounts:
            sums[currency] += amount
        return {currency: amount for currency, amount in sums.items() if amount}

    first_plan = {
        s.customer: s.changes[0].plan
        for s in reversed(known.world.subscriptions)
        if s.started_at <= known.now
    }
    cancelled = [s for of in known.subscriptions.values() for s in of if known.ends(s).date() == day]
    calls = quantities["api_calls"]
    return {
        "is_complete": int(day < known.today),
        "sign_ups": len(signed_up),
        "sign_ups_by_plan": dict(Counter(first_plan.get(name, "none") for name in signed_up)),
        "integrations": sum(steps(known, name).get("first_request") == day for name in known.customers),
        "active_customers": len(active),
        "subscriptions_by_status": dict(Counter(t["status"] for t in open_terms)),
        "paying_customers": sum(t["base_price_cents"] > 0 for t in paying),
        "mrr_cents": by_currency((t["currency"], t["base_price_cents"]) for t in paying),
        "cancellations": len(cancelled),
        "payments_succeeded": sum(p.status == "succeeded" for p in today),
        "payments_failed": sum(p.status == "failed" for p in today),
        "collected_cents": by_currency((p.currency, p.cents) for p in today if p.status == "succeeded"),
        "failed_cents": by_currency((p.currency, p.cents) for p in today if p.status == "failed"),
        "collected_month_to_date_cents": by_currency(
            (p.currency, p.cents) for p in month if p.status == "succeeded"
        ),
        "quantities": {metric: quantity for metric, quantity in quantities.items() if quantity},
        "error_rate": quantities["sdk_errors"] / calls if calls > 0 else None,
    }


def signup_funnel(known: Known) -> dict[tuple[date, str], Counter[str]]:
    found: dict[tuple[date, str], Counter[str]] = defaultdict(Counter)
    for name, (source, created) in known.customers.items():
        week = created.date() - timedelta(days=created.weekday())
        reached = steps(known, name)
        trials = [s for s in known.subscriptions[name] if s.trial_end]
        facts = {
            "signed_up": True,
            "downloaded": any(step.startswith("sdk_downloaded") for step in reached),
            "sent_request": "first_request" in reached,
            "showed_impression": "first_impression" in reached,
            "began_trial": bool(trials),
            "converted_trial": any(_converted(known, s) for s in trials),
            "paid": any(p.customer == name and p.cents and p.status == "succeeded" for p in known.payments),
        }
        found[week, source].update(fact for fact, holds in facts.items() if holds)
    return found


def _converted(known: Known, subscription: Subscription) -> bool:
    """Whether a moment after the trial had paid terms; looked for at each moment at which they change."""
    assert subscription.trial_end is not None
    moments = [subscription.trial_end, *(terms.since for terms in subscription.changes)]
    for moment in moments:
        if not subscription.trial_end <= moment < min(known.now, known.ends(subscription)):
            continue
        terms = [terms for terms in subscription.changes if terms.since <= moment][-1]
        if terms.status in ("active", "past_due") and plans()[terms.plan].base_price_cents:
            return True
    return False


def goals(rows: dict[date, dict[str, Any]], known: Known) -> dict[tuple[str, int], tuple[float | None, Any]]:
    launch = min(day for day, row in rows.items() if row["sign_ups"])
    found: dict[tuple[str, int], tuple[float | None, Any]] = {}
    with (SEEDS / "goals.csv").open(newline="") as file:
        for goal in csv.DictReader(file):
            months = launch.month - 1 + int(goal["months"])
            due = launch.replace(year=launch.year + months // 12, month=months % 12 + 1)
            days = sorted(day for day in rows if launch <= day < due)
            errors = sum(rows[day]["quantities"].get("sdk_errors", 0) for day in days)
            calls = sum(rows[day]["quantities"].get("api_calls", 0) for day in days)
            actual = {
                "sign_ups": sum(rows[day]["sign_ups"] for day in days),
                "integrations": sum(rows[day]["integrations"] for day in days),
                "paying_customers": rows[days[-1]]["paying_customers"],
                "mrr": rows[days[-1]]["mrr_cents"].get("usd", 0),
                "error_rate": errors * 10**9 // calls / 10**9 if calls else None,
            }.get(goal["goal"])
            target = float(goal["target"])
            met = (
                None
                if actual is None
                else actual <= target
                if goal["is_upper_limit"] == "1"
                else actual >= target
            )
            found[goal["goal"], int(goal["months"])] = (actual, met)
    return found


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=20260604, customers=70)


def test_customer_marts_equal_an_independent_computation(models: Models, world: World) -> None:
    logged: dict[date, dict[str, dict[str, tuple[float, float]]]] = {}
    before = None
    for now in RUNS:
        tell(models, world, before, now)
        last = now == RUNS[-1]
        models.build(
            *(["customers", "health_backtest", "email_funnel", "signup_funnel", "goal_progress",
               "dunning_effectiveness", "customer_health_components"] if last else ["customer_health_daily"]),
            as_of=now,
        )  # fmt: skip
        known, before = Known(world, now), now
        logged[known.today] = {
            customer: points
            for customer in known.customers
            if (points := health(known, customer)) is not None
        }
    _compare_health(models, known, logged)
    _compare_money_and_people(models, known)
    _compare_operations(models, known)


def _compare_health(models: Models, known: Known, logged: dict[date, dict[str, Any]]) -> None:
    stored = {
        (row["as_of_date"], row["customer_id"]): row
        for row in models.frame("select * from marts.customer_health_daily").to_dicts()
    }
    assert stored.keys() == {(day, customer) for day, found in logged.items() for customer in found}
    bands: dict[date, dict[str, str]] = defaultdict(dict)
    for (day, customer), row in stored.items():
        points = {name: points for name, (_, points) in logged[day][customer].items()}
        assert row["points"] == pytest.approx(points, abs=0.006), (day, customer)
        assert row["score"] == pytest.approx(sum(points.values()), abs=0.56), (day, customer)
        assert row["band"] == band(row["score"]), (day, customer)
        bands[day][customer] = row["band"]

    components = models.frame("select * from marts.customer_health_components").to_dicts()
    month_ago = RUNS[1].date()
    assert {(row["customer_id"], row["component"]) for row in components} == {
        (customer, component) for customer, found in logged[known.today].items() for component in found
    }
    for row in components:
        value, points = logged[known.today][row["customer_id"]][row["component"]]
        earlier = logged[month_ago].get(row["customer_id"], {}).get(row["component"])
        assert (row["value"], row["points"]) == pytest.approx((value, points), abs=0.006), row
        assert row["points"] + row["points_lost"] == pytest.approx(row["max_points"]), row
        if earlier is None:
            assert (row["points_before"], row["points_change"], row["compared_with"]) == (None, None, None), (
                row
            )
        else:
            assert row["points_before"] == pytest.approx(earlier[1], abs=0.006), row
            assert row["points_change"] == pytest.approx(points - earlier[1], abs=0.012), row
            assert row["compared_with"] == month_ago
    assert len({row["points_change"] for row in components}) > 10

    expected: dict[tuple[date, str], list[bool]] = defaultdict(list)
    for day in (run.date() for run in RUNS[:2]):
        for customer, name in bands[day].items():
            mine = known.subscriptions[customer]
            if any(s.started_at.date() <= day < known.ends(s).date() for s in mine):
                left = has_left(known, customer, day, day + HORIZON)
                expected[day.replace(day=1), name].append(left)
    backtest = models.frame("select * from marts.health_backtest").to_dicts()
    assert {(row["month"], row["band"]) for row in backtest} == expected.keys()
    for row in backtest:
        left_of = expected[row["month"], row["band"]]
        assert (row["customers"], row["churned"]) == (len(left_of), sum(left_of)), row
        interval = (row["churn_rate_low"], row["churn_rate_high"])
        assert interval == pytest.approx(wilson(sum(left_of), len(left_of)), abs=2e-6), row
    assert sum(row["churned"] for row in backtest) > 1


def _compare_money_and_people(models: Models, known: Known) -> None:
    periods = models.frame("select * from intermediate.int_billing_periods").to_dicts()
    terms = models.frame("select * from intermediate.int_subscription_terms").to_dicts()
    allowances = {
        (row["subscription_id"], row["period_start"], row["metric_type"]): row
        for row in models.frame("select * from intermediate.int_period_allowances").to_dicts()
    }
    rows = {row["customer_id"]: row for row in models.frame("select * from marts.customers").to_dicts()}
    assert rows.keys() == known.customers.keys()
    for customer, row in rows.items():
        expected = one_row(known, customer, periods, allowances, terms)
        assert {name: row[name] for name in expected} == expected, customer

    candidates = {
        row["customer_id"]: (
            row["next_plan_type"], row["periods"], row["overage_periods"], row["current_cost_cents"],
            row["next_plan_cost_cents"], row["saving_cents"],
        )
        for row in models.frame("select * from marts.upsell_candidates").to_dicts()
    }  # fmt: skip
    wanted = {customer: upsell(known, customer, periods, allowances) for customer in known.customers}
    assert candidates == {customer: found for customer, found in wanted.items() if found}
    loops = models.frame("select customer_id, growth_loop from marts.growth_loop_candidates").rows()
    assert sorted(loops) == sorted(
        (name, loop) for name in known.customers for loop in growth_loops(known, name)
    )
    # The made-up company has to have something of everything.
    assert candidates
    assert {loop for _, loop in loops} == {"invite_team", "case_study", "referral"}
    assert any(row["current_period_overage_cents"] for row in rows.values())


def _compare_operations(models: Models, known: Known) -> None:
    terms = models.frame("select * from intermediate.int_subscription_terms").to_dicts()
    rows = {}
    for row in models.frame("select * from marts.daily_digest").to_dicts():
        rows[row.pop("digest_date")] = row
    first = min(known.known_since(customer) for customer in known.customers)
    assert rows.keys() == {first + n * DAY for n in range((known.today - first).days + 1)}
    for day, row in rows.items():
        expected = digest(known, day, terms)
        assert {name: row[name] for name in expected} == expected, day

    found = {
        (row["goal"], row["months"]): (None if row["actual"] is None else float(row["actual"]), row["is_met"])
        for row in models.frame("select * from marts.goal_progress").to_dicts()
    }
    assert found == goals(rows, known)

    attempts = {
        (row["month"], row["attempt_number"]): row
        for row in models.frame("select * from marts.dunning_effectiveness").to_dicts()
    }
    wanted = dunning(known)
    assert attempts.keys() == wanted.keys()
    for key, row in attempts.items():
        names = ("attempts", "failed", "retries", "recovered", "recovery_rate", "mean_days_to_recovery")
        assert tuple(row[name] for name in names) == pytest.approx(wanted[key]), key

    mails = models.frame("select * from marts.email_funnel").to_dicts()
    counted = mail_funnel(known)
    assert {(row["email_type"], row["queued_on"]) for row in mails} == counted.keys()
    for row in mails:
        key = (row.pop("email_type"), row.pop("queued_on"))
        assert row == {name: counted[key][name] for name in row}, key

    weeks = models.frame("select * from marts.signup_funnel").to_dicts()
    signed_up = signup_funnel(known)
    assert {(row["week"], row["source"]) for row in weeks} == signed_up.keys()
    for row in weeks:
        key = (row.pop("week"), row.pop("source"))
        assert row == {name: signed_up[key][name] for name in row}, key
