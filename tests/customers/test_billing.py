"""Plans, subscriptions through their months, and payments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.billing.periods import add_months, period_at
from apex_pipelines.billing.store import (
    AlreadySubscribed,
    BillingError,
    NewSubscription,
    NoOpenSubscription,
    OtherCurrency,
    PaymentAttempt,
    PaymentConflict,
    UnknownPlan,
    cancel,
    change_plan,
    record_payment,
    roll_periods,
    set_status,
    subscribe,
    subscribe_many,
    sync_plans,
)
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.platform import catalogue

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
INSTANTS = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001 - the zone is set by `timezones`
    max_value=datetime(2040, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def utc(month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection with the plans filled in; what a test writes is rolled back."""
    with engine.connect() as connection:
        sync_plans(connection)
        yield connection


@pytest.fixture
def customer(connection: sa.Connection) -> str:
    return create_customer(connection, NewCustomer("Ada", "ada@example.com"), START)


def stored(connection: sa.Connection, customer: str) -> sa.RowMapping:
    query = sa.text("select * from subscriptions where customer_id = :id order by started_at desc limit 1")
    return connection.execute(query, {"id": customer}).mappings().one()


@given(INSTANTS, st.none() | st.integers(1, 60), INSTANTS)
def test_every_instant_has_one_period_and_periods_follow_without_gap(
    started: datetime, trial_days: int | None, instant: datetime
) -> None:
    trial_end = started + timedelta(days=trial_days) if trial_days else None
    start, end = period_at(started, trial_end, instant)
    assert start < end
    if instant >= started:
        assert start <= instant < end
        following, _ = period_at(started, trial_end, end)
        assert following == end


def test_the_last_of_a_month_comes_back_after_february() -> None:
    assert add_months(START, 1) == utc(2, 28, 9, 30)
    assert period_at(START, None, utc(3, 15)) == (utc(2, 28, 9, 30), utc(3, 31, 9, 30))


def test_plans_follow_the_catalogue(connection: sa.Connection) -> None:
    connection.execute(sa.text("update plans set base_price_cents = 1 where plan_type = 'indie'"))
    assert sync_plans(connection) == len(catalogue.plans())
    price = connection.scalar(sa.text("select base_price_cents from plans where plan_type = 'indie'"))
    assert price == catalogue.plans()["indie"].base_price_cents


def test_a_customer_from_trial_to_leaving(connection: sa.Connection, customer: str) -> None:
    subscription = subscribe(connection, NewSubscription(customer, "indie", START, trial=True), START)
    row = stored(connection, customer)
    assert (row["status"], row["trial_end"]) == ("trialing", START + timedelta(days=14))
    assert row["current_period_end"] == row["trial_end"]

    assert roll_periods(connection, START + timedelta(days=13)) == 0
    assert roll_periods(connection, START + timedelta(days=14)) == 1
    row = stored(connection, customer)
    assert (row["status"], row["current_period_start"]) == ("active", utc(2, 14, 9, 30))
    assert row["current_period_end"] == utc(3, 14, 9, 30)

    change_plan(connection, customer, "studio", utc(3, 1))
    row = stored(connection, customer)
    assert (row["plan_type"], row["base_price_cents"], row["included_impressions"]) == (
        "studio", 49_900, 10_000_000,
    )  # fmt: skip
    assert row["current_period_end"] == utc(3, 14, 9, 30)

    set_status(connection, customer, SubscriptionStatus.PAST_DUE, utc(3, 15))
    assert roll_periods(connection, utc(6, 20)) == 1  # catches up, and keeps the status
    row = stored(connection, customer)
    assert (row["status"], row["current_period_start"]) == ("past_due", utc(6, 14, 9, 30))

    assert cancel(connection, customer, utc(6, 21), cancelled_at=utc(6, 20, 12)) == subscription
    row = stored(connection, customer)
    assert (row["status"], row["cancelled_at"]) == ("canceled", utc(6, 20, 12))
    with pytest.raises(NoOpenSubscription, match=customer):
        cancel(connection, customer, utc(6, 22))
    assert roll_periods(connection, utc(12, 1)) == 0
    subscribe(connection, NewSubscription(customer, "starter", utc(7, 1)), utc(7, 1))  # may come back


def test_there_is_one_open_subscription(connection: sa.Connection, customer: str) -> None:
    new = NewSubscription(customer, "starter", START)
    assert subscribe_many(connection, [new], START) == 1
    assert subscribe_many(connection, [new], START) == 0
    with pytest.raises(AlreadySubscribed, match="change its plan, or cancel"):
        subscribe(connection, NewSubscription(customer, "indie", utc(2, 1)), utc(2, 1))
    cancel(connection, customer, utc(3, 1))
    assert subscribe_many(connection, [new], utc(4, 1)) == 0  # this very one has ended


def test_a_subscription_from_the_past_stands_in_todays_period(
    connection: sa.Connection, customer: str
) -> None:
    subscribe(connection, NewSubscription(customer, "indie", START, trial=True), utc(9, 1))
    row = stored(connection, customer)
    assert (row["status"], row["current_period_start"]) == ("active", utc(8, 14, 9, 30))


def test_terms_of_one_customer_go_before_the_plans(connection: sa.Connection, customer: str) -> None:
    own = NewSubscription(
        customer, "enterprise", START, base_price_cents=150_000, included_impressions=70_000_000
    )
    subscribe(connection, own, START)
    row = stored(connection, customer)
    assert (row["base_price_cents"], row["included_impressions"]) == (150_000, 70_000_000)


def test_what_can_not_be_subscribed_says_why(connection: sa.Connection, customer: str) -> None:
    with pytest.raises(UnknownPlan, match=r"no plan 'gold'; plans are enterprise, indie, starter, studio"):
        subscribe(connection, NewSubscription(customer, "gold", START), START)
    with pytest.raises(BillingError, match="-5"):
        subscribe(connection, NewSubscription(customer, "indie", START, base_price_cents=-5), START)
    with pytest.raises(NoOpenSubscription, match="subscribe them first"):
        change_plan(connection, customer, "studio", START)
    subscribe(connection, NewSubscription(customer, "indie", START), START)
    connection.execute(sa.text("update plans set currency = 'eur' where plan_type = 'studio'"))
    with pytest.raises(OtherCurrency, match="pays in usd and plan 'studio' is priced in eur"):
        change_plan(connection, customer, "studio", START)
    with pytest.raises(BillingError, match="cancel"):
        set_status(connection, customer, SubscriptionStatus.CANCELED, START)


def test_an_attempt_at_an_invoice_is_recorded_once(connection: sa.Connection, customer: str) -> None:
    failed = PaymentAttempt(customer, "in_1", 1, False, 9_900, START, failure_code="card_declined")
    paid = PaymentAttempt(customer, "in_1", 2, True, 9_900, utc(2, 3))
    assert record_payment(connection, failed) == record_payment(connection, failed)
    assert record_payment(connection, paid) != record_payment(connection, failed)
    rows = connection.execute(sa.text("select status, failure_code from payments order by attempt_number"))
    assert [tuple(row) for row in rows] == [("failed", "card_declined"), ("succeeded", None)]
    with pytest.raises(PaymentConflict, match=r"attempt 1 at invoice 'in_1' is recorded as"):
        record_payment(connection, PaymentAttempt(customer, "in_1", 1, True, 9_900, START))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, True, 1, None), "attempt_number 0"),
        ((1, True, -1, None), "-1 cents"),
        ((1, True, 1, "card_declined"), "failure_code"),
        ((1, False, 1, None), "failure_code"),
    ],
)
def test_a_payment_that_can_not_be_is_refused(
    connection: sa.Connection, customer: str, values: tuple[int, bool, int, str | None], message: str
) -> None:
    number, succeeded, amount, code = values
    with pytest.raises(BillingError, match=message):
        record_payment(connection, PaymentAttempt(customer, "in_1", number, succeeded, amount, START, code))
