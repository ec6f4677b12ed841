"""Subscriptions and payments as the payment provider has them, made ours.

Belongs here: rows of `subscriptions` and `payments` that follow somebody else's. Does not belong here: what
the provider's words mean (`apex_pipelines/stripe/standing.py`), and changes that we decide (`store.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import takewhile

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.billing.models import Payment, PaymentStatus, Plan
from apex_pipelines.billing.store import (
    BillingError,
    PaymentAttempt,
    UnknownPlan,
    open_subscription_id,
    payment_rows,
    unknown_plan_message,
)
from apex_pipelines.customers.models import Subscription, SubscriptionChange, SubscriptionStatus

# Fixed for ever: another namespace would give the same subscriptions other ids.
_NAMESPACE = uuid.UUID("5d3bd1b6-7f0c-5c43-9d6e-0a7b2f6c1e58")


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """A subscription as the payment provider has it.

    Attributes
    ----------
    id : str
        Ours.
    cancelled_at : datetime or None
        When it ended; with the status canceled and no other.
    changed_at : datetime
        From when on this holds, as far as it differs from what we have.
    """

    id: str
    customer_id: str
    plan_type: str
    status: SubscriptionStatus
    base_price_cents: int
    currency: str
    started_at: datetime
    trial_end: datetime | None
    current_period_start: datetime
    current_period_end: datetime
    cancelled_at: datetime | None
    changed_at: datetime


class TwoOpenSubscriptions(BillingError):
    """The customer has another open subscription, `subscription_id`."""

    def __init__(self, message: str, subscription_id: str) -> None:
        super().__init__(message)
        self.subscription_id = subscription_id


@dataclass(frozen=True, slots=True)
class HeldStatus:
    """A status, and since when it is held without a break."""

    status: SubscriptionStatus
    since: datetime


def subscription_id_for(provider_id: str) -> str:
    """Our id of a subscription that began at the provider, the same whenever it is asked for."""
    return f"sub_{uuid.uuid5(_NAMESPACE, provider_id).hex}"


def mirror_subscription(
    connection: sa.Connection, state: SubscriptionState, *, keep_terms: bool = False
) -> bool:
    """Make our row what the provider says, opening it when it is new; whether anything changed.

    What the provider does not decide stays: the start, contract terms, and included quantities unless the
    plan changes. A change is dated by `changed_at`, but never before the change that we have of it last.

    Parameters
    ----------
    keep_terms : bool
        Leave plan, price and end of a row that is there as they are.

    Raises
    ------
    UnknownPlan
        If the table `plans` lacks the plan.
    TwoOpenSubscriptions
        If the customer has another open subscription.
    """
    included = connection.scalar(
        sa.select(Plan.included_impressions).where(Plan.plan_type == state.plan_type)
    )
    if included is None:
        raise UnknownPlan(
            unknown_plan_message(state.plan_type, connection.scalars(sa.select(Plan.plan_type)))
        )
    values = asdict(state)
    changed_at = values.pop("changed_at")
    started_at = values.pop("started_at")
    row = connection.execute(
        sa.select(Subscription.__table__).where(Subscription.id == state.id).with_for_update()
    ).one_or_none()
    if row is not None and row.status == state.status == SubscriptionStatus.CANCELED:
        # It ended when we ended it, and there when that was heard of.
        values["cancelled_at"] = row.cancelled_at
    if row is not None and keep_terms:
        kept = ["plan_type", "base_price_cents", "currency"]
        if row.status == SubscriptionStatus.CANCELED:
            kept += ["status", "cancelled_at"]
        values |= {name: row._mapping[name] for name in kept}
    if row is not None and {name: row._mapping[name] for name in values} == values:
        return False
    open_id = open_subscription_id(connection, state.customer_id)
    is_open = values["status"] != SubscriptionStatus.CANCELED
    if is_open and open_id is not None and open_id != state.id:
        raise TwoOpenSubscriptions(
            f"customer {state.customer_id!r} has the open subscription {open_id!r}, so {state.id!r} can't be "
            "open as well; cancel one of them",
            open_id,
        )
    if row is None:
        connection.execute(
            insert(Subscription).values(
                **values, started_at=started_at, included_impressions=included, updated_at=changed_at
            )
        )
        return True
    if row.plan_type != values["plan_type"]:
        values["included_impressions"] = included
    newest = connection.scalar(
        sa.select(sa.func.max(SubscriptionChange.effective_at)).where(
            SubscriptionChange.subscription_id == state.id
        )
    )
    connection.execute(
        sa.update(Subscription)
        .where(Subscription.id == state.id)
        .values(**values, updated_at=max(changed_at, newest or changed_at))
    )
    return True


def held_since(connection: sa.Connection, subscription_id: str) -> HeldStatus | None:
    """Status of a subscription and since when it has it; None when there is no such subscription."""
    rows = connection.execute(
        sa.select(SubscriptionChange.status, SubscriptionChange.effective_at)
        .where(SubscriptionChange.subscription_id == subscription_id)
        .order_by(SubscriptionChange.effective_at.desc(), SubscriptionChange.id.desc())
    ).all()
    if not rows:
        return None
    same = takewhile(lambda row: row.status == rows[0].status, rows)
    return HeldStatus(SubscriptionStatus(rows[0].status), [row.effective_at for row in same][-1])


def has_paid_since(connection: sa.Connection, customer_id: str, since: datetime) -> bool:
    """Whether an invoice of the customer was collected at `since` or later; to the second."""
    paid = sa.exists().where(
        Payment.customer_id == customer_id,
        Payment.status == PaymentStatus.SUCCEEDED,
        Payment.occurred_at >= since.replace(microsecond=0),
    )
    return bool(connection.scalar(sa.select(paid)))


def mirror_payments(connection: sa.Connection, attempts: Sequence[PaymentAttempt]) -> int:
    """Make recorded attempts what the provider says of them now; how many were new or different.

    Raises
    ------
    BillingError
        If a value can't be right. Nothing is written by this call then.
    """
    changed = 0
    for row in payment_rows(attempts):
        statement = insert(Payment).values(row)
        told = {name: statement.excluded[name] for name in row if name != "id"}
        different = sa.tuple_(*(getattr(Payment, name) for name in told)).is_distinct_from(
            sa.tuple_(*told.values())
        )
        changed += connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_=told, where=different)
        ).rowcount
    return changed
