"""Accounts of the simulated customers as they stand at an instant: who exists, on which plan, what was paid.

Belongs here: bringing the operational tables in line with the stories. Safe to repeat; a later instant adds
what has happened since, so that a simulation can be lived through day by day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from apex_pipelines.billing import store as billing
from apex_pipelines.customers.models import (
    Customer,
    Subscription,
    SubscriptionChange,
    SubscriptionStatus,
)
from apex_pipelines.customers.store import NewCustomer, create_customers, customer_id_for
from apex_pipelines.sandbox.simulator.life import Life, PlanChange

SOURCE = "simulator"


@dataclass(frozen=True, slots=True)
class AccountCounts:
    """How many accounts, ended subscriptions, payment attempts and failed ones there are at the instant."""

    customers: int
    cancelled: int
    payments: int
    failed_payments: int


def customer_id(story: Life) -> str:
    """Id of the story's customer in our tables."""
    return customer_id_for(SOURCE, story.customer.external_ref)


def sync_accounts(
    connection: sa.Connection, stories: Sequence[Life], as_of: datetime, now: datetime
) -> AccountCounts:
    """Write every account that exists before `as_of`, in its state at `as_of`. Changes only what differs."""
    billing.sync_plans(connection)
    present = [story for story in stories if story.customer.created_at < as_of]
    create_customers(
        connection,
        [
            NewCustomer(
                name=story.customer.name,
                email=story.customer.email,
                source=SOURCE,
                external_ref=story.customer.external_ref,
                created_at=story.customer.created_at,
                company_size=story.customer.company_size,
                country=story.customer.country,
                time_zone=story.customer.time_zone,
            )
            for story in present
        ],
        now,
    )
    billing.subscribe_many(
        connection,
        [
            billing.NewSubscription(
                customer_id=customer_id(story),
                plan_type=story.customer.plan_type,
                started_at=story.customer.created_at,
                trial=story.customer.trial,
                base_price_cents=story.customer.base_price_cents,
                included_impressions=story.customer.included_impressions,
            )
            for story in present
        ],
        as_of,
    )
    _sync_subscriptions(connection, present, as_of, now)
    attempts = [
        billing.PaymentAttempt(
            customer_id=customer_id(story),
            invoice_id=payment.invoice_id,
            attempt_number=payment.attempt_number,
            succeeded=payment.failure_code is None,
            amount_cents=payment.amount_cents,
            occurred_at=payment.at,
            failure_code=payment.failure_code,
        )
        for story in present
        for payment in story.payments
        if payment.at < as_of
    ]
    billing.record_payments(connection, attempts)
    return AccountCounts(
        customers=len(present),
        cancelled=sum(story.status_at(as_of) is SubscriptionStatus.CANCELED for story in present),
        payments=len(attempts),
        failed_payments=sum(not attempt.succeeded for attempt in attempts),
    )


def _sync_subscriptions(
    connection: sa.Connection, stories: Sequence[Life], as_of: datetime, now: datetime
) -> None:
    query = (
        sa.select(
            Subscription.customer_id,
            Subscription.status,
            sa.func.max(SubscriptionChange.effective_at).label("changed_at"),
        )
        .join(Customer, Customer.id == Subscription.customer_id)
        .join(SubscriptionChange, SubscriptionChange.subscription_id == Subscription.id)
        .where(Customer.source == SOURCE)
        .group_by(Subscription.id)
    )
    stored = {row.customer_id: row for row in connection.execute(query)}
    for story in stories:
        row = stored[customer_id(story)]
        if row.status != SubscriptionStatus.CANCELED:
            _live_on(connection, story, row.customer_id, row.changed_at, as_of, now)


def _live_on(
    connection: sa.Connection, story: Life, customer: str, after: datetime, as_of: datetime, now: datetime
) -> None:
    """Change the customer's subscription as it happened behind `after`, each change at its own time."""
    changes: list[tuple[datetime, PlanChange | SubscriptionStatus]] = [
        *((change.at, change) for change in story.plan_changes),
        *((payment.at, payment.status_after) for payment in story.payments),
    ]
    if story.trial_end is not None:
        changes.append((story.trial_end, SubscriptionStatus.ACTIVE))
    for at, change in sorted(changes, key=lambda each: each[0]):
        if not after < at < as_of:
            continue
        if isinstance(change, PlanChange):
            billing.change_plan(
                connection,
                customer,
                change.plan_type,
                at,
                base_price_cents=change.base_price_cents,
                included_impressions=change.included_impressions,
            )
        else:
            billing.set_status(connection, customer, change, at)
    if story.status_at(as_of) is SubscriptionStatus.CANCELED:
        billing.cancel(connection, customer, now, cancelled_at=story.ends_at)
