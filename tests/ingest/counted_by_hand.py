"""What a history of events amounts to, counted from a plain list: the other half of `test_exactly_once`.

Belongs here: the rules of SPEC as naive arithmetic over everything that ever came, day by day and event by
event. Does not belong here: any code of the product, any state but the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any

MAX_LATE = timedelta(days=35)
MAX_EARLY = timedelta(minutes=5)
# Of each metric, how many decimal places its unit has.
SCALES = {
    "impressions": 0, "api_calls": 0, "data_transfer": 9, "mediated_revenue": 6,
    "sdk_errors": 0, "sdk_crashes": 0, "console_logins": 0, "doc_views": 0, "support_tickets": 0,
    "feature_used": 0,
}  # fmt: skip
USAGE_FIELDS = {
    "impressions": "impressions",
    "api_calls": "api_calls",
    "data_transfer": "data_transfer_gb",
    "mediated_revenue": "mediated_revenue_usd",
}
CHURN_STEP = timedelta(days=14)


@dataclass(frozen=True)
class Event:
    """An event as it was sent, with its quantity in storage units.

    Attributes
    ----------
    at : datetime or None
        None when the client left the time to us.
    accepted_on : date
        Day on which it was answered as accepted; only what has arrived has one.
    """

    customer_id: str
    event_id: str | None
    metric: str
    quantity: int
    at: datetime | None
    corrects: str = ""
    reason: str = ""
    feature: str = ""
    accepted_on: date = field(default=date.max, compare=False)

    @property
    def units(self) -> Decimal:
        return Decimal(self.quantity).scaleb(-SCALES.get(self.metric, 0))

    @property
    def instant(self) -> datetime:
        assert self.at is not None
        return self.at

    @property
    def day(self) -> date:
        return self.instant.date()


def refusal(event: Event, now: datetime) -> str | None:
    """Why an event that is sound otherwise can't count at `now`."""
    if event.at is not None and event.at > now + MAX_EARLY:
        return "too_early"
    if event.at is not None and event.at < now - MAX_LATE:
        return "too_late"
    return None


def first_of_each(arrived: Iterable[Event]) -> list[Event]:
    """The events that count: of each customer and event id the one that came first."""
    first: dict[tuple[str, str | None], Event] = {}
    for event in arrived:
        first.setdefault((event.customer_id, event.event_id), event)
    return list(first.values())


def period(now: datetime, started: datetime) -> tuple[datetime, datetime]:
    """The monthly period around `now`; `started` on a day that every month has."""
    begun = started.replace(year=now.year, month=now.month)
    if begun > now:
        begun = _month(begun, -1)
    return begun, _month(begun, 1)


def _month(instant: datetime, step: int) -> datetime:
    index = instant.year * 12 + instant.month - 1 + step
    return instant.replace(year=index // 12, month=index % 12 + 1)


@dataclass(frozen=True)
class Terms:
    """What a customer pays for a period, in cents, and what that includes, in storage units."""

    plan: str
    price_cents: int
    included: dict[str, int]
    started: datetime


class Count:
    """One customer's figures at `now`, from the events of everybody that count."""

    def __init__(self, counted: Iterable[Event], customer_id: str, terms: Terms, now: datetime) -> None:
        self.customer_id = customer_id
        self.events = [event for event in counted if event.customer_id == customer_id]
        self.terms = terms
        self.now = now
        self.start, self.end = period(now, terms.started)

    def total(self, metric: str, holds: Callable[[Event], bool]) -> int:
        return sum(event.quantity for event in self.events if event.metric == metric and holds(event))

    def in_period(self, metric: str) -> int:
        return self.between(metric, self.start, self.end)

    def between(self, metric: str, start: datetime, end: datetime) -> int:
        return self.total(metric, lambda event: start <= event.instant < end)

    def current(self) -> dict[str, Any]:
        """The answer to `/api/usage/current`."""
        overages: dict[str, Any] = {}
        for metric, included in self.terms.included.items():
            over = max(self.in_period(metric) - included, 0)
            unit = USAGE_FIELDS[metric].removeprefix(metric)
            overages[f"{metric}_overage{unit}"] = _units(over, metric)
            overages[f"{metric}_overage_cost_cents"] = round(
                Fraction(over * self.terms.price_cents, included)
            )
        total = sum(value for name, value in overages.items() if name.endswith("cents"))
        return {
            "usage": {
                "customer_id": self.customer_id,
                **{name: _units(self.in_period(metric), metric) for metric, name in USAGE_FIELDS.items()},
                "period_start": f"{self.start:%Y-%m-%dT%H:%M:%SZ}",
                "period_end": f"{self.end:%Y-%m-%dT%H:%M:%SZ}",
            },
            "overages": {**overages, "total_overage_cost_cents": total, "currency": "usd"},
        }

    def analytics(self, days: int) -> dict[str, Any]:
        """The answer to `/api/usage/analytics`."""
        today = self.now.date()
        shown = [today - timedelta(days=back) for back in reversed(range(days))]
        answer: dict[str, Any] = {"daily_usage": [{"date": day.isoformat()} for day in shown]}
        for metric, name in USAGE_FIELDS.items():
            for line, day in zip(answer["daily_usage"], shown, strict=True):
                line[name] = _units(self.total(metric, lambda event, day=day: event.day == day), metric)
            total = _units(self.total(metric, lambda event: event.day in shown), metric)
            places = Decimal(1).scaleb(-SCALES[metric] - 2)
            answer[f"total_{name}"] = total
            answer[f"avg_daily_{name}"] = (total / days).quantize(places, ROUND_HALF_EVEN)
        return answer

    def limits(self) -> dict[str, Any]:
        """The answer to `/api/usage/limits`."""
        used = {metric: self.in_period(metric) for metric in self.terms.included}
        percents = {
            metric: Decimal(str(float(round(Fraction(max(used[metric], 0) * 100, included), 2))))
            for metric, included in self.terms.included.items()
        }
        reached = {metric: self._reached_on(metric) for metric in self.terms.included}
        dates = [day.isoformat() for day in reached.values() if day is not None]
        return {
            "plan_type": self.terms.plan,
            "limits": self._named(self.terms.included),
            "current_usage": self._named(used),
            "percent_used": max(percents.values()),
            "remaining": self._named(
                {name: max(limit - used[name], 0) for name, limit in self.terms.included.items()}
            ),
            "will_exceed": any(reached.values()),
            "projected_limit_date": min(dates, default=None),
            "by_metric": {
                USAGE_FIELDS[metric]: {
                    "percent_used": percents[metric],
                    "will_exceed": day is not None,
                    "projected_limit_date": day and day.isoformat(),
                }
                for metric, day in reached.items()
            },
        }

    def _reached_on(self, metric: str) -> date | None:
        """The day on which the limit was reached, or will be within the period at the rate so far."""
        used, limit = self.in_period(metric), self.terms.included[metric]
        if used >= limit:
            inside = [event for event in self.events if self.start <= event.instant < self.end]
            days = sorted({event.day for event in inside if event.metric == metric})
            return next(
                day
                for day in days
                if sum(event.quantity for event in inside if event.metric == metric and event.day <= day)
                >= limit
            )
        if used <= 0:
            return None
        second = timedelta(seconds=1)
        wait = Fraction((self.now - self.start) // second * limit, used)
        if wait >= (self.end - self.start) // second:
            return None
        return (self.start + int(wait) * second).date()

    def _named(self, quantities: dict[str, int]) -> dict[str, Decimal]:
        return {USAGE_FIELDS[metric]: _units(stored, metric) for metric, stored in quantities.items()}

    def usage_daily(self) -> list[tuple[Any, ...]]:
        """Rows of the mart: day, metric, quantity, events, corrections, first, last, features."""
        groups: dict[tuple[date, str], list[Event]] = {}
        for event in self.events:
            groups.setdefault((event.day, event.metric), []).append(event)
        return [
            (
                day, metric, sum(event.quantity for event in events), len(events),
                sum(1 for event in events if event.quantity < 0),
                min(event.instant for event in events), max(event.instant for event in events),
                sorted({event.feature for event in events if event.feature}),
            )
            for (day, metric), events in sorted(groups.items())
        ]  # fmt: skip

    def usage_by_period(self) -> list[tuple[Any, ...]]:
        """Rows of the mart, one for each period that has begun: period, metric, quantity, included, share."""
        rows = []
        start = self.terms.started
        while start < self.now:
            end = _month(start, 1)
            for metric in sorted(USAGE_FIELDS):
                used, included = self.between(metric, start, end), self.terms.included.get(metric)
                share = used / included if included else 0.0
                rows.append((start, end, metric, used, included, share))
            start = end
        return rows

    def customer(self) -> dict[str, Any]:
        """The figures of use in the mart `customers`, whose windows end before today."""
        window = Window(self.events, self.now.date())
        month = window.total("impressions", 30)
        return {
            "impressions_30d": month,
            "impressions_previous_30d": window.total("impressions", 60) - month,
            "api_calls_30d": window.total("api_calls", 30),
            "data_transfer_bytes_30d": window.total("data_transfer", 30),
            "support_tickets_30d": window.total("support_tickets", 30),
            "console_logins_30d": window.total("console_logins", 30),
            "features_30d": len({event.feature for event in window.events(30) if event.feature}),
            "active_days_30d": len(window.active_days(30)),
            "last_active_on": max(window.active_days(), default=None),
        }

    def churn_features(self, feature_date: date) -> dict[str, float]:
        """The figures of use in the mart `churn_features`: days before `feature_date`, as known by then."""
        window = Window([event for event in self.events if event.accepted_on < feature_date], feature_date)
        return {
            "usage_last_7_days": window.total("impressions", 7),
            "usage_last_30_days": window.total("impressions", 30),
            "usage_last_90_days": window.total("impressions", 90),
            "api_calls_last_30_days": window.total("api_calls", 30),
            "revenue_usd_last_30_days": window.total("mediated_revenue", 30) / 1_000_000,
            "crashes_count": window.total("sdk_crashes", 30),
            "support_tickets_count": window.total("support_tickets", 30),
            "doc_views_count": window.total("doc_views", 30),
            "logins_count": window.total("console_logins", 30),
            "active_days_last_30_days": len(window.active_days(30)),
            "active_days_last_90_days": len(window.active_days(90)),
            "active_days_ever": len(window.active_days()),
        }

    def onboarding(self) -> dict[str, datetime]:
        """When the customer's first request and first impression were."""
        requests = [event.instant for event in self.events if event.metric in USAGE_FIELDS]
        shown = [
            event.instant
            for event in self.events
            if event.metric == "impressions"
            and self.total("impressions", lambda other, day=event.day: other.day == day) > 0
        ]
        steps = {"first_request": requests, "first_impression": shown}
        return {step: min(instants) for step, instants in steps.items() if instants}


@dataclass(frozen=True)
class Window:
    """Days before `end`; what lies on it and later is not known yet."""

    known: list[Event]
    end: date

    def events(self, days: int) -> list[Event]:
        """Those of the last `days` days."""
        return [event for event in self.known if self.end - timedelta(days=days) <= event.day < self.end]

    def total(self, metric: str, days: int) -> int:
        return sum(event.quantity for event in self.events(days) if event.metric == metric)

    def active_days(self, days: int = 10_000) -> set[date]:
        """The days with use above zero in any metric of use."""
        daily: dict[tuple[date, str], int] = {}
        for event in self.events(days):
            if event.metric in USAGE_FIELDS:
                daily[event.day, event.metric] = daily.get((event.day, event.metric), 0) + event.quantity
        return {day for (day, _), quantity in daily.items() if quantity > 0}


def _units(stored: int, metric: str) -> Decimal:
    return Decimal(stored).scaleb(-SCALES[metric])
