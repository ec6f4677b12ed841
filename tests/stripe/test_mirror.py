"""Whatever comes in when: our rows end as Stripe has them, and say since when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apex_pipelines.billing.store import change_plan, set_status
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.stripe.accounts import push
from apex_pipelines.stripe.bootstrap import plan_price_name
from apex_pipelines.stripe.mirror import Mirror
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from apex_pipelines.stripe.standing import decide_status
from tests.stripe.reading import START, StripeWorld, Subscribed

DAY = timedelta(days=1)
READ = ("customer", "invoice", "charge", "subscription")
HISTORY = "select plan_type, status, effective_at from subscription_changes order by id"


def move_at_stripe(world: StripeWorld, who: Subscribed, plan_type: str) -> None:
    """What an operator does in Stripe's dashboard."""
    [price] = world.stripe.v1.prices.list({"lookup_keys": [plan_price_name(plan_type)]}).data
    items = world.stripe.v1.subscription_items.list({"subscription": who.stripe_subscription_id}).data
    [flat] = [
        item for item in items if item.price.recurring and item.price.recurring.usage_type == "licensed"
    ]
    world.stripe.v1.subscription_items.update(flat.id, {"price": price.id, "proration_behavior": "none"})


def test_a_backfill_finds_nothing_to_change_in_what_we_made(world: StripeWorld) -> None:
    who = world.subscribed()
    before = world.subscription(who.subscription_id)
    assert world.backfill("customer", "subscription").problems == []
    assert world.subscription(who.subscription_id) == before
    assert world.rows("select count(*) from subscription_changes") == [(1,)]


def test_a_plan_changed_at_stripe_changes_here_from_when_stripe_says(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    world.until(START + DAY)
    move_at_stripe(world, who, "studio")
    world.until(START + 3 * DAY)
    assert world.sweep().failed == 0
    row = world.subscription(who.subscription_id)
    assert (row["plan_type"], row["base_price_cents"], row["included_impressions"]) == (
        "studio",
        49_900,
        10_000_000,
    )
    assert world.rows(HISTORY) == [("indie", "trialing", START), ("studio", "trialing", START + DAY)]


def test_a_change_of_ours_that_stripe_does_not_know_yet_is_not_taken_back(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    with world.engine.begin() as connection:
        change_plan(connection, who.customer_id, "studio", START + DAY)
    world.until(START + DAY)
    world.stripe.v1.subscriptions.update(who.stripe_subscription_id, {"metadata": {"note": "x"}})
    world.sweep()
    assert world.subscription(who.subscription_id)["plan_type"] == "studio"
    push(world.stripe, world.engine, world.clock.now(), livemode=False)
    world.sweep()
    assert world.subscription(who.subscription_id)["plan_type"] == "studio"
    move_at_stripe(world, who, "indie")
    world.sweep()
    assert world.subscription(who.subscription_id)["plan_type"] == "indie"


def test_an_end_at_stripe_ends_it_here_at_that_time(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    world.until(START + 2 * DAY)
    world.stripe.v1.subscriptions.cancel(who.stripe_subscription_id)
    world.until(START + 9 * DAY)
    world.sweep()
    row = world.subscription(who.subscription_id)
    assert (row["status"], row["cancelled_at"]) == ("canceled", START + 2 * DAY)
    assert world.rows(HISTORY)[-1] == ("indie", "canceled", START + 2 * DAY)


def test_a_subscription_made_at_stripe_for_a_customer_of_ours_appears_here(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    world.stripe.v1.subscriptions.cancel(who.stripe_subscription_id)
    [price] = world.stripe.v1.prices.list({"lookup_keys": [plan_price_name("studio")]}).data
    end = int((START + TRIAL).timestamp())
    made = world.stripe.v1.subscriptions.create(
        {"customer": who.stripe_customer_id, "items": [{"price": price.id}], "trial_end": end}
    )
    stranger = world.stripe.v1.customers.create({"email": "stranger@example.com"})
    world.stripe.v1.subscriptions.create(
        {"customer": stranger.id, "items": [{"price": price.id}], "trial_end": end}
    )
    report = world.sweep()
    assert (report.failed, report.retrying) == (0, 0)
    query = (
        "select s.plan_type, s.status, l.stripe_id from subscriptions s "
        "join stripe_links l on l.local_id = s.id where l.object = 'subscription' order by s.plan_type"
    )
    assert world.rows(query) == [
        ("indie", "canceled", who.stripe_subscription_id),
        ("studio", "trialing", made.id),
    ]


PAYMENTS = """
select attempt_number, status, amount_cents, failure_code from payments order by invoice_id, attempt_number
"""
TRIAL = 14 * DAY


def test_a_trial_that_ends_with_a_good_card_is_active_since_it_ended_and_paid_once(
    world: StripeWorld,
) -> None:
    who = world.subscribed()
    world.backfill(*READ)
    world.pay_by(who, "pm_card_visa")
    world.until(START + TRIAL + DAY)
    for _ in range(2):
        assert (report := world.sweep()).failed == report.retrying == 0
        assert world.rows(PAYMENTS) == [(1, "succeeded", 9_900, None)]
        assert world.rows(HISTORY) == [("indie", "trialing", START), ("indie", "active", START + TRIAL)]
    row = world.subscription(who.subscription_id)
    assert (row["current_period_start"], row["status"]) == (START + TRIAL, "active")


def test_each_failed_try_is_a_payment_and_suspended_ends_only_when_it_is_paid(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill(*READ)
    world.pay_by(who, "pm_card_chargeCustomerFail")
    world.until(START + TRIAL + DAY)
    world.sweep()
    assert world.rows(PAYMENTS) == [(1, "failed", 9_900, "generic_decline")]
    assert world.subscription(who.subscription_id)["status"] == "past_due"
    world.until(START + TRIAL + 4 * DAY)
    with world.engine.begin() as connection:
        set_status(connection, who.customer_id, SubscriptionStatus.SUSPENDED, world.clock.now())
    world.sweep()
    assert len(world.rows(PAYMENTS)) == 2
    assert world.subscription(who.subscription_id)["status"] == "suspended"
    world.pay_by(who, "pm_card_visa")
    world.until(START + TRIAL + 4 * DAY + timedelta(hours=1))
    [invoice] = world.stripe.v1.invoices.list({"customer": who.stripe_customer_id, "status": "open"}).data
    world.stripe.v1.invoices.pay(invoice.id)
    world.sweep()
    assert world.rows(PAYMENTS)[-1] == (3, "succeeded", 9_900, None)
    assert world.subscription(who.subscription_id)["status"] == "active"


@pytest.mark.parametrize("stripes", sorted(set(SubscriptionStatus) - {SubscriptionStatus.CANCELED}))
def test_only_a_payment_and_a_settled_account_together_lift_a_suspension(stripes: SubscriptionStatus) -> None:
    ours, settled = SubscriptionStatus.SUSPENDED, {SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING}
    assert decide_status(ours, stripes, paid_since=False) is ours
    assert decide_status(ours, stripes, paid_since=True) is (stripes if stripes in settled else ours)
    assert decide_status(SubscriptionStatus.PAST_DUE, stripes, paid_since=False) is stripes


def test_a_state_that_was_asked_for_earlier_never_replaces_a_later_one(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    reader = world.account.reader
    stale = reader.one(OBJECT_TYPES["subscription"], who.stripe_subscription_id)
    world.until(START + DAY)
    world.stripe.v1.subscriptions.cancel(who.stripe_subscription_id)
    world.sweep()
    assert Mirror(world.engine, reader).apply([stale]) == {}
    assert world.subscription(who.subscription_id)["status"] == "canceled"


def test_what_names_no_plan_is_told_and_holds_nothing_else_up(world: StripeWorld) -> None:
    who = world.subscribed()
    price: Any = {"currency": "usd", "unit_amount": 100, "recurring": {"interval": "month"},
                  "product": world.stripe.v1.products.create({"name": "Other"}).id}  # fmt: skip
    other = world.stripe.v1.prices.create(price).id
    world.stripe.v1.subscriptions.cancel(who.stripe_subscription_id)
    trial_end = int((START + TRIAL).timestamp())
    made = world.stripe.v1.subscriptions.create(
        {"customer": who.stripe_customer_id, "items": [{"price": other}], "trial_end": trial_end}
    )
    [problem] = world.backfill("customer", "subscription").problems
    assert made.id in problem
    assert "lookup key" in problem
    assert world.subscription(who.subscription_id)["status"] == "canceled"
    assert made.id in world.landed("subscription")
