"""What the triggers read from and write to PostgreSQL, inside the caller's transaction.

Belongs here: statements and their rows. Does not belong here: what follows from a row (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.lifecycle.models import UsageAlert
from apex_pipelines.platform.catalogue import Plan, plans


@dataclass(frozen=True, slots=True)
class CustomerFacts:
    """A customer as the triggers need them, with their open (else their last) subscription.

    Attributes
    ----------
    plan_type, status, subscription_id, included_impressions, trial_end : or None
        None when the customer never had a subscription, as imported ones.
    """

    id: str
    name: str
    created_at: datetime
    key_prefix: str | None
    subscription_id: str | None
    plan_type: str | None
    status: str | None
    base_price_cents: int | None
    currency: str | None
    included_impressions: int | None
    trial_end: datetime | None

    @property
    def canceled(self) -> bool:
        """They had a subscription and have none any more; such customers get no life-cycle mail."""
        return self.status == "canceled"

    @property
    def suspended(self) -> bool:
        """Their last retry of a payment failed; what they hear about now is the money, not offers."""
        return self.status == "suspended"

    @property
    def trialing(self) -> bool:
        return self.status == "trialing"

    @property
    def plan(self) -> Plan | None:
        return plans().get(self.plan_type) if self.plan_type else None

    @property
    def plan_name(self) -> str:
        return self.plan.name if self.plan else "no plan"


_CUSTOMERS = """
    select c.id, c.name, c.created_at, k.prefix as key_prefix, s.id as subscription_id, s.plan_type, s.status,
           s.base_price_cents, s.currency, s.included_impressions, s.trial_end
    from customers c
    left join lateral (
        select * from subscriptions s where s.customer_id = c.id
        order by (s.status <> 'canceled') desc, s.started_at desc limit 1
    ) s on true
    left join lateral (
        select prefix from api_keys k where k.customer_id = c.id and k.revoked_at is null
        order by k.created_at desc limit 1
    ) k on true
"""
_BY_ID = sa.text(_CUSTOMERS + " where c.id = any(cast(:ids as text[]))")
_NEW_OR_ON_TRIAL = sa.text(
    _CUSTOMERS
    + """
    where c.created_at >= :signed_up_from
       or exists (
           select from subscriptions t
           where t.customer_id = c.id and t.status = 'trialing' and t.trial_end >= :trial_from
       )
    order by c.id
"""
)


def lock_trigger(connection: sa.Connection, name: str) -> None:
    """Let no other run of this trigger decide until the transaction ends."""
    connection.execute(
        sa.text("select pg_advisory_xact_lock(hashtextextended('lifecycle:' || cast(:name as text), 0))"),
        {"name": name},
    )


def customers_by_id(connection: sa.Connection, ids: Collection[str]) -> dict[str, CustomerFacts]:
    """Facts of the customers with these ids; unknown ids are absent."""
    rows = connection.execute(_BY_ID, {"ids": sorted(set(ids))})
    return {row.id: CustomerFacts(**row._mapping) for row in rows}


def new_or_on_trial(connection: sa.Connection, as_of_date: date, max_age_days: int) -> list[CustomerFacts]:
    """Customers who signed up in the last `max_age_days` days, or whose trial has not ended."""
    rows = connection.execute(
        _NEW_OR_ON_TRIAL,
        {
            "signed_up_from": midnight(as_of_date - timedelta(days=max_age_days)),
            "trial_from": midnight(as_of_date),
        },
    )
    return [CustomerFacts(**row._mapping) for row in rows]


def episode_starts(
    connection: sa.Connection, prefix: str, customer_ids: Collection[str]
) -> dict[str, list[date]]:
    """Days on which mailed episodes began: keys `<prefix>:<customer id>:<day>` of the outbox."""
    rows = connection.execute(
        sa.text(
            "select customer_id, right(occurrence_key, 10) as day from events "
            "where customer_id = any(cast(:ids as text[])) and starts_with(occurrence_key, :prefix)"
        ),
        {"ids": sorted(set(customer_ids)), "prefix": f"{prefix}:"},
    )
    found: dict[str, list[date]] = {}
    for row in rows:
        found.setdefault(row.customer_id, []).append(date.fromisoformat(row.day))
    return found


def steps_taken(connection: sa.Connection) -> dict[str, set[str]]:
    """Recorded onboarding steps by customer."""
    found: dict[str, set[str]] = {}
    for row in connection.execute(sa.text("select customer_id, step from onboarding_progress")):
        found.setdefault(row.customer_id, set()).add(row.step)
    return found


def record_steps(connection: sa.Connection, steps: Sequence[tuple[str, str, datetime]]) -> int:
    """Record (customer id, step, occurred at), each step of a customer once; returns how many were new.

    Steps of customers that do not exist (erased since the mart was built) are left out.
    """
    result = connection.execute(
        sa.text("""
            insert into onboarding_progress (customer_id, step, occurred_at)
            select r.customer_id, r.step, r.occurred_at
            from unnest(cast(:customers as text[]), cast(:steps as text[]), cast(:instants as timestamptz[]))
                as r(customer_id, step, occurred_at)
            join customers c on c.id = r.customer_id
            on conflict do nothing
        """),
        {
            "customers": [customer for customer, _, _ in steps],
            "steps": [step for _, step, _ in steps],
            "instants": [instant for _, _, instant in steps],
        },
    )
    return result.rowcount


def recorded_alerts(
    connection: sa.Connection, customer_ids: Collection[str]
) -> dict[tuple[str, str, datetime], set[int]]:
    """Thresholds already recorded, by customer, metric and period start."""
    rows = connection.execute(
        sa.select(
            UsageAlert.customer_id,
            UsageAlert.metric_type,
            UsageAlert.period_start,
            UsageAlert.threshold_percent,
        ).where(UsageAlert.customer_id.in_(sorted(set(customer_ids))))
    )
    found: dict[tuple[str, str, datetime], set[int]] = {}
    for customer_id, metric, start, percent in rows:
        found.setdefault((customer_id, metric, start.astimezone(UTC)), set()).add(percent)
    return found


def record_alerts(connection: sa.Connection, alerts: Sequence[dict[str, object]]) -> None:
    """Record reached thresholds; the database keeps each once a period."""
    if alerts:
        connection.execute(insert(UsageAlert).on_conflict_do_nothing(), list(alerts))


def midnight(day: date) -> datetime:
    """The UTC instant at which `day` begins."""
    return datetime.combine(day, time(), UTC)
