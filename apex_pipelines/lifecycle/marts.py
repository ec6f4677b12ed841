"""What the triggers read from ClickHouse: small, bounded extracts of marts, typed.

Belongs here: queries and their rows. Does not belong here: what follows from a row (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle.rules import SEGMENT_CATCH_UP
from apex_pipelines.platform.catalogue import metrics

# Ids travel inside the statement, whose length the server limits to 256 KiB.
_IDS_PER_QUERY = 2_000
_WINDOW = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class AtRisk:
    customer_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    customer_id: str
    segment: str
    entered_on: date


@dataclass(frozen=True, slots=True)
class ChurnScore:
    """`probability` is calibrated; `expected_profit` in USD; `reasons` JSON, strongest first."""

    customer_id: str
    probability: float
    expected_profit: float
    reasons: str
    holdout: bool


@dataclass(frozen=True, slots=True)
class PeriodUsage:
    """Use of one metric in one of a customer's billing periods, in storage units."""

    customer_id: str
    metric_type: str
    period_start: datetime
    period_end: datetime
    quantity: int
    included: int


@dataclass(frozen=True, slots=True)
class OnboardingStep:
    customer_id: str
    step: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Use:
    """Use of one metric in the 30 days before a day, and in the 30 before those, in storage units."""

    recent: int = 0
    previous: int = 0


@dataclass(frozen=True, slots=True)
class DigestDay:
    """What one day was, of all customers; a day of which nothing is known is all zeros.

    Attributes
    ----------
    subscriptions_by_status, mrr_cents : dict
        At the end of the day.
    revenue_forecast_cents : dict
        What the day's month is expected to bring by its end; empty in months that are over.
    active_customers : int
        Who used a billed metric; signals such as console logins don't count.
    ..._cents : dict of str to int
        Minor units by currency; amounts of two are never added.
    quantities : dict of str to int
        By metric, in storage units.
    """

    sign_ups: int = 0
    sign_ups_by_plan: dict[str, int] = field(default_factory=dict)
    integrations: int = 0
    active_customers: int = 0
    subscriptions_by_status: dict[str, int] = field(default_factory=dict)
    mrr_cents: dict[str, int] = field(default_factory=dict)
    cancellations: int = 0
    payments_succeeded: int = 0
    payments_failed: int = 0
    collected_cents: dict[str, int] = field(default_factory=dict)
    failed_cents: dict[str, int] = field(default_factory=dict)
    collected_month_to_date_cents: dict[str, int] = field(default_factory=dict)
    revenue_forecast_cents: dict[str, int] = field(default_factory=dict)
    quantities: dict[str, int] = field(default_factory=dict)
    error_rate: float | None = None


def at_risk(client: Client, as_of_date: date) -> list[AtRisk]:
    """Customers at risk on `as_of_date`, with each reason."""
    rows = _rows(
        client,
        "select customer_id, reason, detail from marts.at_risk_customers "
        "where as_of_date = %(day)s order by customer_id, reason",
        day=as_of_date,
    )
    return [AtRisk(*row) for row in rows]


def segment_entries(client: Client, as_of_date: date) -> list[SegmentEntry]:
    """Who entered a segment within the week that ends on `as_of_date`, and is still in it."""
    rows = _rows(
        client,
        "select customer_id, segment, entered_on from marts.segment_memberships "
        "where entered_on > %(after)s and entered_on <= %(day)s and (left_on is null or left_on > %(day)s) "
        "order by customer_id, segment",
        day=as_of_date,
        after=as_of_date - SEGMENT_CATCH_UP,
    )
    return [SegmentEntry(*row) for row in rows]


def churn_scores(client: Client, feature_date: date) -> list[ChurnScore]:
    """Each customer's newest score of that feature date, the most profitable to keep first."""
    rows = _rows(
        client,
        "select customer_id, probability, expected_profit, reasons, holdout from ("
        "  select * from ml.churn_scores final where feature_date = %(day)s"
        "  order by customer_id, scored_at desc, model_version limit 1 by customer_id"
        ") order by expected_profit desc, customer_id",
        day=feature_date,
    )
    return [ChurnScore(row[0], float(row[1]), float(row[2]), row[3], bool(row[4])) for row in rows]


def usage_by_period(client: Client, min_ratio: Decimal, ended_after: datetime) -> list[PeriodUsage]:
    """Metrics of which at least about `min_ratio` of the included quantity is used, in recent periods.

    Parameters
    ----------
    ended_after : datetime
        Aware; periods that ended at this instant or before are left out.
    """
    rows = _rows(
        client,
        "select customer_id, metric_type, period_start, period_end, quantity, included_quantity "
        "from marts.usage_by_period "
        "where included_quantity > 0 and used_ratio >= %(ratio)s and period_end > %(ended_after)s "
        "order by customer_id, metric_type, period_start",
        ratio=float(min_ratio) * 0.999,  # the exact comparison is made on whole numbers
        ended_after=ended_after,
    )
    return [PeriodUsage(row[0], row[1], _utc(row[2]), _utc(row[3]), int(row[4]), int(row[5])) for row in rows]


def onboarding_steps(client: Client, as_of_date: date) -> list[OnboardingStep]:
    """Steps that customers took up to the end of `as_of_date`."""
    rows = _rows(
        client,
        "select customer_id, step, occurred_at from marts.onboarding "
        "where toDate(occurred_at, 'UTC') <= %(day)s order by customer_id, step",
        day=as_of_date,
    )
    return [OnboardingStep(row[0], row[1], _utc(row[2])) for row in rows]


def use_around(client: Client, customer_ids: Collection[str], until: date) -> dict[str, dict[str, Use]]:
    """Use of each metric in the 30 days before `until` and in the 30 before; customer to metric to `Use`."""
    found: dict[str, dict[str, Use]] = {}
    for ids in _chunks(sorted(customer_ids)):
        rows = _rows(
            client,
            "select customer_id, metric_type, sumIf(quantity, usage_date >= %(middle)s),"
            "       sumIf(quantity, usage_date < %(middle)s) "
            "from marts.usage_daily "
            "where customer_id in %(ids)s and usage_date >= %(start)s and usage_date < %(until)s "
            "group by customer_id, metric_type",
            ids=ids,
            start=until - 2 * _WINDOW,
            middle=until - _WINDOW,
            until=until,
        )
        for customer_id, metric, recent, previous in rows:
            found.setdefault(customer_id, {})[metric] = Use(int(recent), int(previous))
    return found


def digest_day(client: Client, day: date) -> DigestDay:
    """The digest's figures of one day."""
    names = [column.name for column in fields(DigestDay)]
    rows = _rows(
        client,
        f"select {', '.join(names)} from marts.daily_digest where digest_date = %(day)s",  # noqa: S608
        day=day,
    )
    return DigestDay(**dict(zip(names, rows[0], strict=True))) if rows else DigestDay()


def segment_sizes(client: Client, as_of_date: date) -> dict[str, int]:
    """How many customers are in each segment on `as_of_date`."""
    rows = _rows(
        client,
        "select segment, uniqExact(customer_id) from marts.segment_memberships "
        "where entered_on <= %(day)s and (left_on is null or left_on > %(day)s) "
        "group by segment order by segment",
        day=as_of_date,
    )
    return {segment: int(count) for segment, count in rows}


def in_units(metric_type: str, quantity: int) -> Decimal:
    """A stored quantity in the metric's unit, exactly."""
    return Decimal(quantity).scaleb(-metrics()[metric_type].scale)


def _rows(client: Client, query: str, **parameters: Any) -> Sequence[Sequence[Any]]:
    rows: Sequence[Sequence[Any]] = client.query(query, parameters=parameters).result_rows
    return rows


def _utc(value: date) -> datetime:
    """An aware UTC datetime, whether the column is a date, or an instant with or without zone."""
    if not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    iterator = iter(ids)
    while chunk := list(islice(iterator, _IDS_PER_QUERY)):
        yield chunk
