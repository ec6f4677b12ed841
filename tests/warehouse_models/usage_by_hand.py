"""Use by period, hour and day of arrival, computed by Polars and Python from what a test made up.

Belongs here: an independent second way to each figure. Does not belong here: dbt, the warehouse.
"""

from __future__ import annotations

import calendar
import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction

import polars as pl

from apex_pipelines.platform.catalogue import metrics, plans
from tests.warehouse_models.conftest import Models

_PLANS = ("starter", "indie", "studio")


@dataclass
class Subscription:
    """Terms are pairs of the instant from which they hold, and the plan; instants are aware UTC."""

    id: str
    customer_id: str
    started_at: datetime
    trial_end: datetime | None
    terms: list[tuple[datetime, str]]
    cancelled_at: datetime | None = None
    written: int = field(default=0)

    def store(self, models: Models) -> None:
        """Write what changed since the last call to the copies of the operational tables."""
        models.insert_subscription(
            self.customer_id, self.started_at, trial_end=self.trial_end, cancelled_at=self.cancelled_at,
            plan_type=self.terms[-1][1], with_terms=False,
        )  # fmt: skip
        for effective_at, plan in self.terms[self.written :]:
            models.change_terms(
                self.customer_id, effective_at, plan_type=plan,
                included_impressions=plans()[plan].included("impressions"),
            )  # fmt: skip
        self.written = len(self.terms)


def random_subscription(chance: random.Random, customer_id: str, earliest: datetime) -> Subscription:
    """With or without a trial, from an odd instant or a midnight."""
    started = earliest + timedelta(days=chance.randrange(90))
    if chance.random() < 0.7:
        started += timedelta(microseconds=chance.randrange(86_400_000_000))
    trial_end = started + timedelta(days=14) if chance.random() < 0.5 else None
    return Subscription(
        f"sub_{customer_id}", customer_id, started, trial_end, [(started, chance.choice(_PLANS))]
    )


def change(chance: random.Random, subscription: Subscription, now: datetime) -> None:
    """One more change of plan before `now`, or the end: also one that takes a begun period back."""
    newest = max(subscription.started_at, subscription.terms[-1][0])
    at = newest + (now - newest) * chance.random()
    if chance.random() < 0.3:
        subscription.cancelled_at = at + timedelta(microseconds=1)
    elif subscription.cancelled_at is None:
        subscription.terms.append((at, chance.choice(_PLANS)))


def months_after(anchor: datetime, months: int) -> datetime:
    """The same day and time of a later month, or the month's last day."""
    year, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + year, month + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, calendar.monthrange(year, month)[1]))


def _included(
    subscription: Subscription, metric: str, start: datetime, scheduled_end: datetime
) -> int | None:
    """Included quantity in storage units: each day as the plan at its end has it; None without limit."""
    if metric == "mediated_revenue":
        return None
    total, day = 0, start.date()
    days = (scheduled_end.date() - day).days
    while day < scheduled_end.date():
        plan = [plan for at, plan in subscription.terms if at.date() <= day][-1]
        total += plans()[plan].included(metric) * 10 ** metrics()[metric].scale
        day += timedelta(days=1)
    return round(Fraction(total, days)) or None


def use_by_period(
    subscriptions: list[Subscription], events: pl.DataFrame, now: datetime
) -> list[tuple[object, ...]]:
    """Rows of usage_by_period, sorted; `events` are those that count."""
    rows: list[tuple[object, ...]] = []
    for subscription in subscriptions:
        anchor = subscription.trial_end or subscription.started_at
        schedule = [(subscription.started_at, anchor, True)] if subscription.trial_end else []
        schedule += [(months_after(anchor, n), months_after(anchor, n + 1), False) for n in range(12)]
        until = min(now, subscription.cancelled_at or now)
        for start, scheduled_end, is_trial in schedule:
            if start >= until:
                continue
            end = min(scheduled_end, subscription.cancelled_at or scheduled_end)
            inside = events.filter(
                pl.col("customer_id") == subscription.customer_id,
                pl.col("event_time") >= start,
                pl.col("event_time") < end,
            )
            for metric in ("impressions", "api_calls", "data_transfer", "mediated_revenue"):
                quantity = int(inside.filter(pl.col("metric_type") == metric)["quantity"].sum())
                included = _included(subscription, metric, start, scheduled_end)
                over = 0 if included is None else max(0, quantity - included)
                ratio = 0.0 if included is None else quantity / included
                rows.append((
                    subscription.customer_id, subscription.id, start, end, int(is_trial), int(end <= now),
                    metric, quantity, included, over, ratio,
                ))  # fmt: skip
    return sorted(rows, key=str)


def use_by_slot(
    subscriptions: list[Subscription], events: pl.DataFrame, now: datetime
) -> list[tuple[object, ...]]:
    """Customer, subscription, period, metric, first second, end and quantity of slots with use, sorted."""
    used: dict[tuple[object, ...], int] = {}
    for subscription in subscriptions:
        periods = [
            (start, end)
            for start, end, metric in {
                (row[2], row[3], row[6]) for row in use_by_period([subscription], events.clear(), now)
            }
            if metric == "impressions"
        ]
        mine = events.filter(
            pl.col("customer_id") == subscription.customer_id,
            pl.col("metric_type").is_in(["impressions", "api_calls", "data_transfer", "mediated_revenue"]),
        )
        for at, metric, quantity in mine.select("event_time", "metric_type", "quantity").rows():
            for start, end in periods:
                if start <= at < end:
                    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
                    first = max(start, midnight)
                    if first.microsecond:
                        first = first.replace(microsecond=0) + timedelta(seconds=1)
                    slot = (subscription.customer_id, subscription.id, start, metric, first)
                    slot_end = min(end, midnight + timedelta(days=1))
                    used[*slot, slot_end] = used.get((*slot, slot_end), 0) + quantity
    return sorted(((*slot, quantity) for slot, quantity in used.items() if quantity), key=str)


def use_by_hour(events: pl.DataFrame, as_of: date, days: int) -> list[tuple[object, ...]]:
    """Rows of usage_hourly, sorted."""
    first = datetime.combine(as_of - timedelta(days=days - 1), time(), UTC)
    hours = events.with_columns(pl.col("event_time").dt.truncate("1h").alias("hour"))
    return _summed(hours.filter(pl.col("hour") >= first), "customer_id", "hour", "metric_type")


def use_by_arrival(events: pl.DataFrame) -> list[tuple[object, ...]]:
    """Customer, day, day from which it was known, metric and quantity, sorted."""
    days = events.with_columns(pl.col("event_time").dt.date().alias("day")).with_columns(
        pl.when(pl.col("historical") == 1)
        .then(pl.col("day"))
        .otherwise(pl.col("accepted_at").dt.date())
        .alias("known")
    )
    return _summed(days, "customer_id", "day", "known", "metric_type")


def _summed(events: pl.DataFrame, *keys: str) -> list[tuple[object, ...]]:
    return sorted(
        events.group_by(*keys).agg(pl.col("quantity").sum()).select(*keys, "quantity").rows(), key=str
    )
