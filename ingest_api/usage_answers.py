"""`GET /api/usage/current`, `/analytics` and `/limits`: a customer's own figures, for people.

Belongs here: who may ask, how often, and the shape of the answers. Does not belong here: counting
(`counted_usage`), prices and projections (`apex_pipelines.billing.allowances`).

The customer is the token's subject and nothing else. Names of fields come from the metric catalogue: the
metric, and its unit unless that is a plain count (`impressions`, `data_transfer_gb`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec

from apex_pipelines.billing.allowances import Allowance, allowances, project
from apex_pipelines.customers.tokens import TokenProblem, TokenRefused, customer_of_token
from apex_pipelines.metering.quantity import from_storage
from apex_pipelines.platform.catalogue import Metric, Plan
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.logging import get_logger
from ingest_api import metrics
from ingest_api.authorization import CHALLENGE, bearer
from ingest_api.counted_usage import CountedUsage
from ingest_api.database import DatabaseAway
from ingest_api.metrics import Counters
from ingest_api.request_limit import RequestLimit, Standing
from ingest_api.requests import Request
from ingest_api.responses import Headers, HttpError, Response, json_response
from ingest_api.subscription_lookup import NoSuchCustomer, OpenSubscription, SubscriptionLookup
from ingest_api.warehouse_reader import WarehouseUnavailable

log = get_logger(__name__)

_DEFAULT_DAYS = 30
_MAX_DAYS = 365
_MAX_QUERY_CHARACTERS = 1_000
_TOKEN_MESSAGES = {
    TokenProblem.MISSING: "send a token as `Authorization: Bearer ...`",
    TokenProblem.TOO_LARGE: "the token is too long to be one of ours",
    TokenProblem.MALFORMED: "the token is no valid JSON Web Token",
    TokenProblem.WRONG_ALGORITHM: "the token is not signed with HS256",
    TokenProblem.BAD_SIGNATURE: "the token's signature is not ours",
    TokenProblem.WRONG_AUDIENCE: "the token is for something else (aud)",
    TokenProblem.WRONG_ISSUER: "the token is not issued by us (iss)",
    TokenProblem.CLAIM_MISSING: "the token lacks one of aud, exp, iat, iss, sub",
    TokenProblem.EXPIRED: "the token has expired; get a new one",
    TokenProblem.NOT_YET_VALID: "the token is not valid yet",
}


class AnalyticsQuery(msgspec.Struct):
    """Query of `analytics`.

    Attributes
    ----------
    days : int
        How many days back, today included.
    """

    days: Annotated[int, msgspec.Meta(ge=1, le=_MAX_DAYS)] = _DEFAULT_DAYS


class CurrentAnswer(msgspec.Struct):
    """Answer to `current`; fields of metrics are named after these.

    Attributes
    ----------
    usage : dict
        The period and each metric's quantity in its unit.
    overages : dict
        Of each limited metric the overage and its price, then their total, in minor units of `currency`.
    """

    usage: dict[str, Any]
    overages: dict[str, Any]


class MetricLimit(msgspec.Struct):
    """How one metric stands to its limit."""

    percent_used: float
    will_exceed: bool
    projected_limit_date: date | None


class LimitsAnswer(msgspec.Struct):
    """Answer to `limits`; quantities by metric, in its unit.

    Attributes
    ----------
    percent_used : float
        Of the metric that is nearest to its limit.
    projected_limit_date : date or None
        The first day on which a limit is reached, if that is within the period.
    """

    plan_type: str
    limits: dict[str, int | Decimal]
    current_usage: dict[str, int | Decimal]
    percent_used: float
    remaining: dict[str, int | Decimal]
    will_exceed: bool
    projected_limit_date: date | None
    by_metric: dict[str, MetricLimit]


@dataclass(frozen=True, slots=True)
class _Question:
    """What an admitted customer asks, and when."""

    customer_id: str
    subscription: OpenSubscription | None
    now: datetime
    query: str

    @property
    def subscribed(self) -> OpenSubscription:
        """The subscription, where an answer needs one; without it that is a 404."""
        if self.subscription is None:
            raise HttpError(404, "no_subscription", "there is no open subscription, so no billing period")
        return self.subscription


@dataclass(frozen=True, slots=True)
class UsageAnswers:
    """Handlers of the read endpoints, with what they need.

    Attributes
    ----------
    seen : mapping
        Metrics that customers see, by `metric_type`, in the order of the answers.
    """

    secret: str
    limit: RequestLimit
    subscriptions: SubscriptionLookup
    usage: CountedUsage
    seen: Mapping[str, Metric]
    plans: Mapping[str, Plan]
    counters: Counters
    clock: Clock

    async def current(self, request: Request) -> Response:
        """Use in the current billing period, what of it is overage, and its price."""
        return await self._answered(request, self._current)

    async def analytics(self, request: Request) -> Response:
        """Use by day over the last `days` days, today included."""
        return await self._answered(request, self._analytics)

    async def limits(self, request: Request) -> Response:
        """What the plan includes, how much of it is used, and when it will be used up."""
        return await self._answered(request, self._limits)

    async def _answered(self, request: Request, answer: Callable[[_Question], Awaitable[object]]) -> Response:
        now = self.clock.now()
        customer_id = self._customer(request, now)
        standing = self.limit.take(customer_id)
        told = _rate_headers(standing)
        if not standing.allowed:
            self.counters.add(metrics.THROTTLED["read_rate"])
            message = (
                f"at most {standing.limit} requests in {self.limit.window_seconds:g} s; "
                f"wait {standing.reset_seconds} s"
            )
            raise HttpError(
                429, "rate_limited", message, [("retry-after", str(standing.reset_seconds)), *told]
            )
        try:
            subscription = await self._subscription(customer_id, now)
            body = await answer(_Question(customer_id, subscription, now, request.query))
        except HttpError as error:
            error.headers = [*error.headers, *told]
            raise
        except WarehouseUnavailable as error:
            log.error("use can't be read", error=str(error))
            message = "use can't be counted at the moment; ask again"
            raise HttpError(503, "usage_unavailable", message, [("retry-after", "2"), *told]) from error
        return json_response(body, headers=told)

    def _customer(self, request: Request, now: datetime) -> str:
        try:
            return customer_of_token(self.secret, bearer(request.headers), now)
        except TokenRefused as error:
            raise _unauthorized(error.problem, _TOKEN_MESSAGES[error.problem]) from error

    async def _subscription(self, customer_id: str, now: datetime) -> OpenSubscription | None:
        try:
            return await self.subscriptions.find(customer_id, now)
        except NoSuchCustomer as error:
            raise _unauthorized("unknown_customer", "the customer of this token does not exist") from error
        except DatabaseAway as error:
            log.error("subscriptions can't be looked up", error=str(error))
            message = "subscriptions can't be looked up at the moment; ask again"
            raise HttpError(503, "subscriptions_unavailable", message, [("retry-after", "2")]) from error

    async def _current(self, question: _Question) -> CurrentAnswer:
        held = question.subscribed
        use = await self.usage.by_day(question.customer_id, held.period_start, held.period_end)
        totals = {name: sum(days.values()) for name, days in use.items()}
        overages: dict[str, Any] = {}
        total_cents = 0
        for name, allowance in self._allowances(held).items():
            metric = self.seen[name]
            cents = allowance.overage_cost_cents(totals[name])
            total_cents += cents
            overages[f"{name}_overage{_unit_suffix(metric)}"] = _quantity(
                allowance.overage(totals[name]), metric
            )
            overages[f"{name}_overage_cost_cents"] = cents
        return CurrentAnswer(
            usage={
                "customer_id": question.customer_id,
                **self._named(totals),
                "period_start": _instant(held.period_start),
                "period_end": _instant(held.period_end),
            },
            overages={
                **overages, "total_overage_cost_cents": total_cents, "currency": held.currency
            },
        )  # fmt: skip

    async def _analytics(self, question: _Question) -> dict[str, Any]:
        count = _days(question.query)
        today = question.now.astimezone(UTC).date()
        days = [today - timedelta(days=count - 1 - index) for index in range(count)]
        end = _midnight(today + timedelta(days=1))
        use = await self.usage.by_day(question.customer_id, _midnight(days[0]), end)
        totals = {name: sum(by_day.values()) for name, by_day in use.items()}
        return {
            "daily_usage": [
                {"date": day, **self._named({name: by_day.get(day, 0) for name, by_day in use.items()})}
                for day in days
            ],
            **{f"total_{name}": value for name, value in self._named(totals).items()},
            **{
                f"avg_daily_{_field(metric)}": _average(totals[name], count, metric)
                for name, metric in self.seen.items()
            },
        }

    async def _limits(self, question: _Question) -> LimitsAnswer:
        held = question.subscribed
        use = await self.usage.by_day(question.customer_id, held.period_start, held.period_end)
        limited = self._allowances(held)
        totals = {name: sum(use[name].values()) for name in limited}
        percents = {name: limit.percent_used(totals[name]) for name, limit in limited.items()}
        projections = {
            name: project(limit, use[name], held.period_start, held.period_end, question.now)
            for name, limit in limited.items()
        }
        dates = [projection.reached_on for projection in projections.values() if projection.reached_on]
        return LimitsAnswer(
            plan_type=held.plan_type,
            limits=self._named({name: limit.included for name, limit in limited.items()}),
            current_usage=self._named(totals),
            # The metric that is nearest to its limit decides; each by itself stands below.
            percent_used=max(percents.values(), default=0.0),
            remaining=self._named({name: limit.remaining(totals[name]) for name, limit in limited.items()}),
            will_exceed=any(projection.will_exceed for projection in projections.values()),
            projected_limit_date=min(dates, default=None),
            by_metric={
                _field(self.seen[name]): MetricLimit(
                    percents[name], projection.will_exceed, projection.reached_on
                )
                for name, projection in projections.items()
            },
        )

    def _allowances(self, held: OpenSubscription) -> dict[str, Allowance]:
        return allowances(
            held.history, held.period_start, held.period_end, self.plans, self.seen, trial=held.is_trial
        )

    def _named(self, quantities: Mapping[str, int]) -> dict[str, int | Decimal]:
        """Quantities in their units under the names that clients see."""
        return {
            _field(self.seen[name]): _quantity(stored, self.seen[name]) for name, stored in quantities.items()
        }


def _rate_headers(standing: Standing) -> Headers:
    return [
        ("ratelimit-limit", str(standing.limit)),
        ("ratelimit-remaining", str(standing.remaining)),
        ("ratelimit-reset", str(standing.reset_seconds)),
    ]


def _unauthorized(code: str, message: str) -> HttpError:
    challenge = CHALLENGE if code == TokenProblem.MISSING else f'{CHALLENGE}, error="invalid_token"'
    return HttpError(401, code, message, [("www-authenticate", challenge)])


def _days(query: str) -> int:
    """The parameter `days`, 1 to 365; 30 when absent."""
    given = parse_qs(query[:_MAX_QUERY_CHARACTERS], keep_blank_values=True).get("days", [str(_DEFAULT_DAYS)])
    text = given[-1]
    if len(given) == 1 and text.isascii() and text.isdigit() and len(text) <= 3:
        days = int(text)
        if 1 <= days <= _MAX_DAYS:
            return days
    raise HttpError(422, "invalid_days", f"days is a whole number from 1 to {_MAX_DAYS}, got {text[:20]!r}")


def _unit_suffix(metric: Metric) -> str:
    return "" if metric.unit == "count" else f"_{metric.unit.lower()}"


def _field(metric: Metric) -> str:
    return f"{metric.metric_type}{_unit_suffix(metric)}"


def _quantity(stored: int, metric: Metric) -> int | Decimal:
    """Storage units as an exact number in the metric's unit, without needless zeros or exponents."""
    if not metric.scale:
        return stored
    exact = from_storage(stored, metric.scale)
    return exact.to_integral_value() if exact == exact.to_integral_value() else exact.normalize()


def _average(stored: int, days: int, metric: Metric) -> Decimal:
    """Mean of a day, days without use included: two decimal places more than the metric has, half to even."""
    exact = from_storage(stored, metric.scale)
    return (exact / days).quantize(Decimal(1).scaleb(-metric.scale - 2), ROUND_HALF_EVEN)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
