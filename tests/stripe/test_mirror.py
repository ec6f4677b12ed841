"""Whatever comes in when: our rows end as Stripe has them, and say since when."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from apex_pipelines.billing.store import change_plan, set_status
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.stripe.accounts import push
from apex_pipelines.stripe.bootstrap import plan_price_name
from tests.stripe.reading import START, StripeWorld, Subscribed

DAY = timedelta(days=1)
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
    who = world.subscribed(trial=True)
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
    assert world.rows(HISTORY) == [("indie", "active", START), ("studio", "active", START + DAY)]


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
    made = world.stripe.v1.subscriptions.create(
        {"customer": who.stripe_customer_id, "items": [{"price": price.id}]}
    )
    stranger = world.stripe.v1.customers.create({"email": "stranger@example.com"})
    world.stripe.v1.subscriptions.create({"customer": stranger.id, "items": [{"price": price.id}]})
    report = world.sweep()
    assert (report.failed, report.retrying) == (0, 0)
    query = "select s.plan_type, s.status, l.stripe_id from subscriptions s join stripe_links l on l.local_id = s.id where l.object = 'subscription' order by s.status desc"
    assert sorted(world.rows(query)) == sorted(
        [("indie", "canceled", who.stripe_subscription_id), ("studio", made.status, made.id)]
    )


def test_what_is_suspended_stays_so_until_it_is_paid(world: StripeWorld) -> None:
    who = world.subscribed()
    world.backfill("customer", "subscription")
    with world.engine.begin() as connection:
        set_status(connection, who.customer_id, SubscriptionStatus.SUSPENDED, START + DAY)
    world.until(START + 2 * DAY)
    world.stripe.v1.subscriptions.update(who.stripe_subscription_id, {"metadata": {"note": "x"}})
    world.sweep()
    assert world.subscription(who.subscription_id)["status"] == "suspended"
    with world.engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into payments (id, customer_id, invoice_id, attempt_number, status, amount_cents, occurred_at) "
                "values ('pay_1', :customer, 'in_1', 1, 'succeeded', 9900, :at)"
            ),
            {"customer": who.customer_id, "at": START + 2 * DAY},
        )
    world.stripe.v1.subscriptions.update(who.stripe_subscription_id, {"metadata": {"note": "y"}})
    world.sweep()
    assert world.subscription(who.subscription_id)["status"] == "active"
