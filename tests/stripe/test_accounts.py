"""Customers and their subscriptions at Stripe are as our tables say."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from apex_pipelines.billing.store import NewSubscription, cancel, change_plan, subscribe, sync_plans
from apex_pipelines.commands.customers import customer as customer_command
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.accounts import NotBootstrapped, Pushed, push
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.links import stripe_ids
from tests.stripe.sandbox import Sandbox

WRITES = ("POST /v1/customers", "POST /v1/subscriptions")


@pytest.fixture
def at_stripe(stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock) -> Sandbox:
    """The stand-in at the clock's time, with the catalogue."""
    stripe_sandbox.clock(clock.now())
    with engine.begin() as connection:
        sync_plans(connection)
        bootstrap(stripe_sandbox.client(), connection, clock.now(), livemode=False)
    return stripe_sandbox


def sign_up(
    engine: sa.Engine,
    clock: ManualClock,
    plan: str,
    *,
    price: int | None = None,
    email: str = "a@example.com",
) -> str:
    with engine.begin() as connection:
        customer = create_customer(connection, NewCustomer("A", email), clock.now())
        new = NewSubscription(customer, plan, clock.now(), trial=True, base_price_cents=price)
        subscribe(connection, new, clock.now())
    return customer


def run(sandbox: Sandbox, engine: sa.Engine, clock: ManualClock, retries: int = 0) -> list[Pushed]:
    return push(sandbox.client(retries=retries), engine, clock.now(), livemode=False)


def test_a_sign_up_is_a_customer_with_a_trial_that_ends_when_ours_does(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(engine, clock, "studio")
    [pushed] = run(at_stripe, engine, clock)
    client = at_stripe.client()
    assert client.v1.customers.retrieve(pushed.stripe_customer_id).metadata.to_dict() == {
        "customer_id": customer
    }
    assert pushed.stripe_subscription_id is not None
    held = client.v1.subscriptions.retrieve(pushed.stripe_subscription_id)
    assert held.status == "trialing"
    assert held.trial_end == int((clock.now() + timedelta(days=14)).timestamp())
    items = held["items"].data
    flat = [item for item in items if item.price.recurring.usage_type == "licensed"]
    assert [(item.price.unit_amount, item.price.lookup_key) for item in flat] == [(49_900, "price:studio")]
    metered = {item.price.lookup_key for item in items} - {"price:studio"}
    assert metered == {
        f"price:usage:{metric}:usd"
        for metric in ("impressions", "api_calls", "data_transfer", "mediated_revenue")
    }


def test_pushing_again_writes_nothing_and_a_lost_link_is_found_again(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    sign_up(engine, clock, "indie")
    first = run(at_stripe, engine, clock)
    before = [at_stripe.handled(route) for route in WRITES]
    [again] = run(at_stripe, engine, clock)
    assert (again.outcome, again.stripe_subscription_id) == ("unchanged", first[0].stripe_subscription_id)
    with engine.begin() as connection:
        connection.execute(sa.text("delete from stripe_links where object in ('customer', 'subscription')"))
    # Longer than Stripe remembers idempotency keys.
    clock.advance(timedelta(days=2))
    at_stripe.clock(clock.now())
    [found] = run(at_stripe, engine, clock)
    assert found.stripe_customer_id == first[0].stripe_customer_id
    assert found.stripe_subscription_id == first[0].stripe_subscription_id
    assert [at_stripe.handled(route) for route in WRITES] == before


def test_lost_answers_leave_one_customer_and_one_subscription_each(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    for number in range(3):
        sign_up(engine, clock, "indie", email=f"{number}@example.com")
    at_stripe.fault(when="after", method="POST", times=3)
    assert len(run(at_stripe, engine, clock, retries=5)) == 3
    client = at_stripe.client()
    assert len(client.v1.customers.list({"limit": 100}).data) == 3
    assert len(client.v1.subscriptions.list({"limit": 100}).data) == 3


def test_a_plan_change_swaps_the_price_of_the_month_and_nothing_else(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(engine, clock, "indie")
    [pushed] = run(at_stripe, engine, clock)
    client = at_stripe.client()
    assert pushed.stripe_subscription_id is not None
    before = {item.id: item.price.id for item in _items(client, pushed.stripe_subscription_id)}
    for plan, price, outcome in (
        ("studio", None, "changed"),
        ("studio", None, "unchanged"),
        ("enterprise", 250_000, "changed"),
        ("indie", None, "changed"),
    ):
        with engine.begin() as connection:
            change_plan(connection, customer, plan, clock.now(), base_price_cents=price)
        assert [each.outcome for each in run(at_stripe, engine, clock)] == [outcome]
    after = {item.id: item.price.id for item in _items(client, pushed.stripe_subscription_id)}
    assert after == before  # there and back, and the metered prices were never touched


def test_a_cancellation_here_ends_it_there_once(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(engine, clock, "indie")
    gone = sign_up(engine, clock, "indie", email="gone@example.com")
    with engine.begin() as connection:
        cancel(connection, gone, clock.now())  # before Stripe ever heard of them
    [pushed] = run(at_stripe, engine, clock)
    with engine.begin() as connection:
        cancel(connection, customer, clock.now())
    assert [each.outcome for each in run(at_stripe, engine, clock)] == ["canceled"]
    assert [each.outcome for each in run(at_stripe, engine, clock)] == ["unchanged"]
    assert pushed.stripe_subscription_id is not None
    assert at_stripe.client().v1.subscriptions.retrieve(pushed.stripe_subscription_id).status == "canceled"
    with engine.connect() as connection:
        assert set(stripe_ids(connection, "customer", livemode=False)) == {customer}


def test_who_cancels_and_subscribes_again_has_one_open_subscription_there(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(engine, clock, "indie")
    [first] = run(at_stripe, engine, clock)
    clock.advance(timedelta(days=1))
    at_stripe.clock(clock.now())
    with engine.begin() as connection:
        cancel(connection, customer, clock.now())
        new = NewSubscription(customer, "studio", clock.now(), trial=True)
        subscribe(connection, new, clock.now())
    assert [each.outcome for each in run(at_stripe, engine, clock)] == ["canceled", "created"]
    held = at_stripe.client().v1.subscriptions.list({"status": "all", "limit": 100}).data
    assert sorted(each.status for each in held) == ["canceled", "trialing"]
    assert first.stripe_subscription_id in {each.id for each in held if each.status == "canceled"}
    assert {each.outcome for each in run(at_stripe, engine, clock)} == {"unchanged"}


def test_what_is_unchanged_is_not_asked_for_and_a_change_made_at_stripe_is_not_undone(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    customer = sign_up(engine, clock, "indie")
    [pushed] = run(at_stripe, engine, clock)
    assert pushed.stripe_subscription_id is not None
    client = at_stripe.client()
    flat = next(
        item
        for item in _items(client, pushed.stripe_subscription_id)
        if item.price.recurring.usage_type == "licensed"
    )
    studio = client.v1.prices.list({"lookup_keys": ["price:studio"]}).data[0]
    client.v1.subscriptions.update(
        pushed.stripe_subscription_id,
        {"items": [{"id": flat.id, "price": studio.id}], "proration_behavior": "none"},
    )
    at_stripe.fault(path="/v1/subscriptions", status=500)
    assert [each.outcome for each in run(at_stripe, engine, clock)] == ["unchanged"]
    at_stripe.no_faults()
    # Ours changes as well, before anybody has read what was changed there.
    with engine.begin() as connection:
        change_plan(connection, customer, "enterprise", clock.now())
    assert [each.outcome for each in run(at_stripe, engine, clock)] == ["unchanged"]
    assert studio.id in {item.price.id for item in _items(client, pushed.stripe_subscription_id)}


def test_whom_stripe_refuses_keeps_nobody_else_waiting(
    at_stripe: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    # Without a trial something is due at once, and there is no card to charge.
    with engine.begin() as connection:
        poor = create_customer(connection, NewCustomer("P", "p@example.com"), clock.now())
        subscribe(connection, NewSubscription(poor, "indie", clock.now()), clock.now())
    clock.advance(timedelta(seconds=1))
    at_stripe.clock(clock.now())
    rich = sign_up(engine, clock, "indie")
    outcomes = {each.customer_id: each for each in run(at_stripe, engine, clock)}
    assert outcomes[rich].outcome == "created"
    assert outcomes[poor].outcome == "refused"
    assert "payment" in (outcomes[poor].error or "")


def test_a_customer_made_by_command_is_at_stripe_at_once_and_ours_even_when_stripe_is_away(
    at_stripe: Sandbox, engine: sa.Engine, settings: Settings, clock: ManualClock
) -> None:
    def create(name: str) -> Result:
        return CliRunner().invoke(customer_command, ["create", name, f"{name}@example.com"], obj=settings)

    there = create("anna")
    assert there.exit_code == 0, there.output
    [made] = at_stripe.client().v1.customers.list({"limit": 100}).data
    assert f"customer {made.id}, subscription sub_" in there.output
    at_stripe.fault(status=500)
    away = create("ben")
    assert away.exit_code == 0, away.output
    assert "`apex stripe push` tries again" in away.output
    at_stripe.no_faults()
    assert {each.outcome for each in run(at_stripe, engine, clock)} == {"unchanged", "created"}
    assert "sk_test" not in there.output + away.output


def test_without_the_catalogue_at_stripe_it_says_what_to_run(
    stripe_sandbox: Sandbox, engine: sa.Engine, clock: ManualClock
) -> None:
    with engine.begin() as connection:
        sync_plans(connection)
    sign_up(engine, clock, "indie")
    with pytest.raises(NotBootstrapped, match="'price:indie'; run `apex stripe bootstrap` first"):
        run(stripe_sandbox, engine, clock)


def _items(client: object, subscription: str) -> list:  # type: ignore[type-arg]
    return client.v1.subscriptions.retrieve(subscription)["items"].data  # type: ignore[attr-defined]
