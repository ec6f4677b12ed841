"""Whom a token names and what that customer has subscribed to, from PostgreSQL, the source of truth for both.

Belongs here: the one query, and the period that holds now. Does not belong here: use, limits, HTTP, the
connection (`database`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from apex_pipelines.billing.periods import period_at
from ingest_api.database import DatabaseThread

_QUERY = """
select
    s.id, s.plan_type, s.base_price_cents, s.currency, s.included_impressions,
    s.started_at, s.trial_end, s.current_period_start, s.current_period_end
from customers as c
left join subscriptions as s on s.customer_id = c.id and s.status <> 'canceled'
where c.id = %s
"""


class NoSuchCustomer(LookupError):
    """There is no customer of this id."""


@dataclass(frozen=True, slots=True)
class OpenSubscription:
    """A subscription with the billing period that holds the moment of asking (end exclusive, aware UTC)."""

    plan_type: str
    base_price_cents: int
    currency: str
    included_impressions: int
    period_start: datetime
    period_end: datetime


class SubscriptionLookup:
    """Asks PostgreSQL, a customer at a time; nothing is remembered."""

    def __init__(self, database: DatabaseThread) -> None:
        self._database = database

    async def find(self, customer_id: str, now: datetime) -> OpenSubscription | None:
        """The customer's open subscription; None for a customer without one.

        Raises
        ------
        NoSuchCustomer
            If there is no such customer.
        DatabaseAway
            If PostgreSQL does not answer in time.
        """
        if not customer_id.isprintable():
            raise NoSuchCustomer(customer_id)  # PostgreSQL would refuse the question itself because of a NUL
        rows = await self._database.run(
            lambda connection: connection.execute(_QUERY, (customer_id,)).fetchall()
        )
        if not rows:
            raise NoSuchCustomer(customer_id)
        identity, plan_type, price, currency, impressions, started_at, trial_end, start, end = rows[0]
        if identity is None:
            return None
        if end <= now:
            # The schedule that rolls periods has not come by yet; this is what it will write.
            start, end = period_at(started_at, trial_end, now)
        return OpenSubscription(plan_type, price, currency, impressions, start, end)
