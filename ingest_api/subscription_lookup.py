"""Whom a token names and what that customer has subscribed to, from PostgreSQL, the source of truth for both.

Belongs here: the one query, and the period that holds now with the terms in it. Does not belong here: use,
limits, HTTP, the connection (`database`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_pipelines.billing.allowances import Terms
from apex_pipelines.billing.periods import period_at
from ingest_api.database import DatabaseThread

_QUERY = """
select
    s.id, s.plan_type, s.currency, s.started_at, s.trial_end, s.current_period_start, s.current_period_end,
    change.effective_at, change.plan_type, change.base_price_cents,
    change.included_impressions, change.included_api_calls, change.included_data_transfer_gb
from customers as c
left join subscriptions as s on s.customer_id = c.id and s.status <> 'canceled'
left join subscription_changes as change on change.subscription_id = s.id and change.status <> 'canceled'
where c.id = %s
order by change.effective_at, change.id
"""


class NoSuchCustomer(LookupError):
    """There is no customer of this id."""


@dataclass(frozen=True, slots=True)
class OpenSubscription:
    """A subscription with the billing period that holds the moment of asking (end exclusive, aware UTC).

    Attributes
    ----------
    is_trial : bool
        Whether that period is the trial.
    history : tuple of Terms
        Its terms so far, oldest first.
    """

    plan_type: str
    currency: str
    period_start: datetime
    period_end: datetime
    is_trial: bool
    history: tuple[Terms, ...]


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
        identity, plan_type, currency, started_at, trial_end, start, end, *_ = rows[0]
        if identity is None:
            return None
        if end <= now:
            # The schedule that rolls periods has not come by yet; this is what it will write.
            start, end = period_at(started_at, trial_end, now)
        history = [_terms(row[7:]) for row in rows]
        return OpenSubscription(
            plan_type=plan_type,
            currency=currency,
            period_start=start,
            period_end=end,
            is_trial=trial_end is not None and start < trial_end,
            # One that begins later has the terms with which it will begin.
            history=tuple(terms for terms in history if terms.valid_from <= now) or (history[0],),
        )


def _terms(row: Sequence[Any]) -> Terms:
    valid_from, plan_type, price, impressions, api_calls, data_transfer_gb = row
    own = {"impressions": impressions, "api_calls": api_calls, "data_transfer": data_transfer_gb}
    contracted = {name: units for name, units in own.items() if units is not None}
    return Terms(valid_from, plan_type, price, contracted)
