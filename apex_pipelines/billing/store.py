"""Plans, subscriptions and payments: the operational record of what a customer bought and paid.

Belongs here: rows of `plans`, `subscriptions` and `payments`. Does not belong here: what a status change
triggers (mails, keys that stop working), retries of failed payments, and counted usage.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.billing.models import Payment, PaymentStatus, Plan
from apex_pipelines.billing.periods import period_at
from apex_pipelines.customers.models import Subscription, SubscriptionStatus
from apex_pipelines.platform import catalogue

SUBSCRIPTION_ID = r"^sub_[0-9a-f]{32}$"
PAYMENT_ID = r"^pay_[0-9a-f]{32}$"
# Fixed for ever: another namespace would give the subscriptions and payments of imports new ids.
_BILLING_NAMESPACE = uuid.UUID("b1a8c3f0-52c4-5d5b-8e0e-7d2a9a3b6e42")
_ROWS_PER_STATEMENT = 1_000


class BillingError(ValueError):
    """A billing record can't be made or changed; the message says what was given and what to do."""


class UnknownPlan(BillingError):
    """The catalogue has no such plan."""


class NoOpenSubscription(BillingError):
    """The customer has no subscription that is not canceled."""


class AlreadySubscribed(BillingError):
    """The customer has an open subscription; there is at most one."""


class OtherCurrency(BillingError):
    """The plan is priced in another currency than the open subscription."""


class PaymentConflict(BillingError):
    """This attempt at this invoice is recorded with another outcome."""


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """A subscription to open.

    Attributes
    ----------
    started_at : datetime
        Aware instant; may lie in the past (imports, simulations). Kept in whole seconds, as Stripe's are: the
        ends of its periods follow from it.
    trial : bool
        Whether it begins with the plan's trial.
    base_price_cents, included_impressions : int or None
        Terms of this customer, a month; None means the plan's.
    """

    customer_id: str
    plan_type: str
    started_at: datetime
    trial: bool = False
    base_price_cents: int | None = None
    included_impressions: int | None = None


@dataclass(frozen=True, slots=True)
class PaymentAttempt:
    """One attempt to collect one invoice; `amount_cents` in minor units, `attempt_number` from 1."""

    customer_id: str
    invoice_id: str
    attempt_number: int
    succeeded: bool
    amount_cents: int
    occurred_at: datetime
    failure_code: str | None = None
    currency: str = "usd"


def sync_plans(connection: sa.Connection) -> int:
    """Bring the table `plans` in line with the plan catalogue; safe to repeat. How many plans it has.

    A plan that left the catalogue stays in the table: subscriptions may still point at it.
    """
    rows = [
        {
            "plan_type": plan.plan_type,
            "name": plan.name,
            "base_price_cents": plan.base_price_cents,
            "currency": plan.currency,
            "included_impressions": plan.included("impressions"),
            "included_api_calls": plan.included("api_calls"),
            "included_data_transfer_gb": plan.included("data_transfer"),
            "trial_days": plan.trial_days,
        }
        for plan in catalogue.plans().values()
    ]
    statement = insert(Plan)
    changes = {name: statement.excluded[name] for name in rows[0] if name != "plan_type"}
    connection.execute(statement.on_conflict_do_update(index_elements=["plan_type"], set_=changes), rows)
    return len(rows)


def subscribe(connection: sa.Connection, subscription: NewSubscription, now: datetime) -> str:
    """Open a subscription for a customer who has none; its id.

    Raises
    ------
    UnknownPlan
        If the table `plans` lacks the plan.
    AlreadySubscribed
        If the customer has an open subscription.
    BillingError
        If a term can't be right.
    """
    open_id = open_subscription_id(connection, subscription.customer_id)
    if open_id is not None:
        raise AlreadySubscribed(
            f"customer {subscription.customer_id!r} has the open subscription {open_id!r}; "
            "change its plan, or cancel it first"
        )
    if not subscribe_many(connection, [subscription], now):
        raise AlreadySubscribed(
            f"customer {subscription.customer_id!r} has a subscription that started at "
            f"{subscription.started_at.isoformat()} or opened one meanwhile; look at `apex customer show`"
        )
    return subscription_id_for(subscription.customer_id, subscription.started_at)


def subscription_id_for(customer_id: str, started_at: datetime) -> str:
    """`sub_` + 32 hex, the same for one customer and start, so that a repeated import finds its own."""
    start = _whole_seconds(started_at)
    return f"sub_{uuid.uuid5(_BILLING_NAMESPACE, f'{customer_id}:{start.timestamp():.6f}').hex}"


def subscribe_many(connection: sa.Connection, subscriptions: Iterable[NewSubscription], now: datetime) -> int:
    """Open many subscriptions; customers who have an open one, or had this very one, are left alone.

    Returns
    -------
    int
        How many were opened.

    Raises
    ------
    UnknownPlan, BillingError
        As `subscribe`; nothing is written by this call then.
    """
    plans = {row.plan_type: row for row in connection.execute(sa.select(Plan.__table__))}
    rows = []
    for new in subscriptions:
        plan = plans.get(new.plan_type)
        if plan is None:
            raise UnknownPlan(unknown_plan_message(new.plan_type, plans))
        price = plan.base_price_cents if new.base_price_cents is None else new.base_price_cents
        included = new.included_impressions
        if included is None:
            included = plan.included_impressions
        _check_terms(new.started_at, price, included)
        started_at = _whole_seconds(new.started_at)
        trial_end = started_at + timedelta(days=plan.trial_days) if new.trial and plan.trial_days else None
        start, end = period_at(started_at, trial_end, now)
        trialing = trial_end is not None and now < trial_end
        rows.append(
            {
                "id": subscription_id_for(new.customer_id, new.started_at),
                "customer_id": new.customer_id,
                "plan_type": new.plan_type,
                "status": str(SubscriptionStatus.TRIALING if trialing else SubscriptionStatus.ACTIVE),
                "base_price_cents": price,
                "currency": plan.currency,
                "included_impressions": included,
                "started_at": started_at,
                "trial_end": trial_end,
                "current_period_start": start,
                "current_period_end": end,
                "updated_at": now,
            }
        )
    opened = 0
    for first in range(0, len(rows), _ROWS_PER_STATEMENT):
        chunk = rows[first : first + _ROWS_PER_STATEMENT]
        statement = insert(Subscription).on_conflict_do_nothing().returning(Subscription.id)
        opened += len(connection.execute(statement, chunk).all())
    return opened


def change_plan(
    connection: sa.Connection,
    customer_id: str,
    plan_type: str,
    now: datetime,
    *,
    base_price_cents: int | None = None,
    included_impressions: int | None = None,
) -> str:
    """Move the open subscription to another plan from `now` on, keeping its period; its id. Safe to repeat.

    Contract terms of other metrics and of the platform fee stay as they are.

    Raises
    ------
    UnknownPlan, NoOpenSubscription, BillingError
        If the plan, the subscription, or a sensible term is missing.
    OtherCurrency
        If the plan has another currency: a period is one invoice line, and has one. Cancel and subscribe.
    """
    plans = {row.plan_type: row for row in connection.execute(sa.select(Plan.__table__))}
    plan = plans.get(plan_type)
    if plan is None:
        raise UnknownPlan(unknown_plan_message(plan_type, plans))
    price = plan.base_price_cents if base_price_cents is None else base_price_cents
    included = plan.included_impressions if included_impressions is None else included_impressions
    _check_terms(now, price, included)
    held = connection.scalar(
        sa.select(Subscription.currency).where(
            Subscription.customer_id == customer_id, Subscription.status != SubscriptionStatus.CANCELED
        )
    )
    if held is not None and held != plan.currency:
        raise OtherCurrency(
            f"customer {customer_id!r} pays in {held} and plan {plan_type!r} is priced in {plan.currency}; "
            "cancel the subscription and subscribe anew"
        )
    return _update_open(
        connection,
        customer_id,
        now,
        plan_type=plan_type,
        base_price_cents=price,
        included_impressions=included,
    )


def set_status(connection: sa.Connection, customer_id: str, status: SubscriptionStatus, now: datetime) -> str:
    """Set the open subscription's status (`active`, `past_due`, `suspended`, …); its id.

    Raises
    ------
    NoOpenSubscription
        If there is none.
    BillingError
        If the status is `canceled`, which needs a time: use `cancel`.
    """
    if status is SubscriptionStatus.CANCELED:
        raise BillingError("a subscription is canceled with cancel(), which records when")
    return _update_open(connection, customer_id, now, status=str(status))


def cancel(
    connection: sa.Connection, customer_id: str, now: datetime, *, cancelled_at: datetime | None = None
) -> str:
    """End the customer's open subscription at `cancelled_at` (`now` when absent); its id.

    Raises
    ------
    NoOpenSubscription
        If there is none.
    """
    return _update_open(
        connection,
        customer_id,
        now,
        status=str(SubscriptionStatus.CANCELED),
        cancelled_at=cancelled_at or now,
    )


def periods_due(connection: sa.Connection, now: datetime) -> bool:
    """Whether a period of an open subscription has ended, so that `roll_periods` has something to do."""
    due = sa.exists().where(
        Subscription.status != SubscriptionStatus.CANCELED, Subscription.current_period_end <= now
    )
    return bool(connection.scalar(sa.select(due)))


def periods_ended_since(connection: sa.Connection, since: datetime, now: datetime) -> bool:
    """Whether a subscription's period (or trial) ended after `since` and by `now`, rolled on or not."""
    rolled = sa.and_(
        Subscription.current_period_start > since,
        Subscription.current_period_start <= now,
        Subscription.current_period_start > Subscription.started_at,
    )
    not_yet = sa.and_(Subscription.current_period_end > since, Subscription.current_period_end <= now)
    return bool(connection.scalar(sa.select(sa.exists().where(sa.or_(rolled, not_yet)))))


def roll_periods(connection: sa.Connection, now: datetime) -> int:
    """Move open subscriptions whose period (or trial) has ended into the one that holds `now`; how many.

    Safe to repeat; catches up over any number of missed months.
    """
    due = connection.execute(
        sa.select(Subscription.id, Subscription.status, Subscription.started_at, Subscription.trial_end)
        .where(Subscription.status != SubscriptionStatus.CANCELED, Subscription.current_period_end <= now)
        .with_for_update()  # the status is written back below
    ).all()
    changes = []
    for row in due:
        start, end = period_at(row.started_at, row.trial_end, now)
        trial_over = row.status == SubscriptionStatus.TRIALING and row.trial_end is not None
        changes.append(
            {
                "key": row.id,
                "start": start,
                "end": end,
                "new_status": str(SubscriptionStatus.ACTIVE) if trial_over else row.status,
                # A trial ends when it ends, whenever that is noticed.
                "at": row.trial_end if trial_over else now,
            }
        )
    if changes:
        connection.execute(
            sa.update(Subscription.__table__)  # type: ignore[arg-type]  # typed as FromClause by the ORM
            .where(Subscription.id == sa.bindparam("key"))
            .values(
                current_period_start=sa.bindparam("start"),
                current_period_end=sa.bindparam("end"),
                status=sa.bindparam("new_status"),
                updated_at=sa.bindparam("at"),
            ),
            changes,
        )
    return len(changes)


def record_payment(connection: sa.Connection, attempt: PaymentAttempt) -> str:
    """Record one attempt to collect one invoice; its id. The same attempt again changes nothing.

    Raises
    ------
    PaymentConflict
        If this attempt at this invoice is recorded with another customer, outcome or amount.
    BillingError
        If a value can't be right.
    """
    record_payments(connection, [attempt])
    found = connection.execute(
        sa.select(Payment.id, Payment.customer_id, Payment.status, Payment.amount_cents).where(
            Payment.invoice_id == attempt.invoice_id, Payment.attempt_number == attempt.attempt_number
        )
    ).one()
    given = (attempt.customer_id, _status(attempt), attempt.amount_cents)
    if (found.customer_id, found.status, found.amount_cents) != given:
        raise PaymentConflict(
            f"attempt {attempt.attempt_number} at invoice {attempt.invoice_id!r} is recorded as "
            f"{(found.customer_id, found.status, found.amount_cents)}, not {given}; number a new attempt"
        )
    return str(found.id)


def record_payments(connection: sa.Connection, attempts: Sequence[PaymentAttempt]) -> None:
    """Record many attempts; those already recorded (invoice and attempt number) stay as they are.

    Raises
    ------
    BillingError
        If a value can't be right. Nothing is written by this call then.
    """
    rows = payment_rows(attempts)
    if rows:
        connection.execute(insert(Payment).on_conflict_do_nothing(), rows)


def payment_rows(attempts: Iterable[PaymentAttempt]) -> list[dict[str, object]]:
    """Rows of `payments`; the id follows from the invoice and the number of the attempt.

    Raises
    ------
    BillingError
        If a value can't be right.
    """
    rows: list[dict[str, object]] = []
    for attempt in attempts:
        if attempt.amount_cents < 0 or attempt.attempt_number < 1:
            raise BillingError(
                f"invoice {attempt.invoice_id!r}: amount {attempt.amount_cents} cents must not be negative, "
                f"attempt_number {attempt.attempt_number} counts from 1"
            )
        if attempt.succeeded == (attempt.failure_code is not None):
            raise BillingError(
                f"invoice {attempt.invoice_id!r}: a failed attempt and no other has a failure_code, "
                f"got succeeded={attempt.succeeded} and {attempt.failure_code!r}"
            )
        name = f"{attempt.invoice_id}:{attempt.attempt_number}"
        rows.append(
            {
                "id": f"pay_{uuid.uuid5(_BILLING_NAMESPACE, name).hex}",
                "customer_id": attempt.customer_id,
                "invoice_id": attempt.invoice_id,
                "attempt_number": attempt.attempt_number,
                "status": _status(attempt),
                "amount_cents": attempt.amount_cents,
                "currency": attempt.currency,
                "failure_code": attempt.failure_code,
                "occurred_at": attempt.occurred_at,
            }
        )
    return rows


def _status(attempt: PaymentAttempt) -> str:
    return (PaymentStatus.SUCCEEDED if attempt.succeeded else PaymentStatus.FAILED).value


def _whole_seconds(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)


def open_subscription_id(connection: sa.Connection, customer_id: str) -> str | None:
    """The customer's subscription that is not canceled; None when there is none."""
    return connection.scalar(
        sa.select(Subscription.id).where(
            Subscription.customer_id == customer_id, Subscription.status != SubscriptionStatus.CANCELED
        )
    )


def _update_open(connection: sa.Connection, customer_id: str, now: datetime, **values: object) -> str:
    changed = connection.execute(
        sa.update(Subscription)
        .where(Subscription.customer_id == customer_id, Subscription.status != SubscriptionStatus.CANCELED)
        .values(updated_at=now, **values)
        .returning(Subscription.id)
    ).scalar_one_or_none()
    if changed is None:
        raise NoOpenSubscription(f"customer {customer_id!r} has no open subscription; subscribe them first")
    return changed


def _check_terms(started_at: datetime, price: int, included: int) -> None:
    if started_at.tzinfo is None:
        raise BillingError(f"started_at needs a time zone, got {started_at.isoformat()!r}")
    if price < 0 or included < 0:
        raise BillingError(f"base_price_cents {price} and included_impressions {included} can't be negative")


def unknown_plan_message(plan_type: str, plans: Iterable[str]) -> str:
    """What an `UnknownPlan` says."""
    known = ", ".join(sorted(plans)) or "none: sync_plans fills the table from the catalogue"
    return f"there is no plan {plan_type!r}; plans are {known}"
