"""Reading everything from Stripe: to the letter, resumed after kills, while the lists change under it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from apex_pipelines.settings import Settings, child_environment
from apex_pipelines.stripe import backfill as reading
from apex_pipelines.stripe.sweep import BackfillNeeded
from tests.stripe.reading import START, StripeWorld

CATALOGUE = ("product", "price", "coupon", "billing.meter", "customer")


def seed_customers(world: StripeWorld, numbers: range) -> None:
    """Customers of before the start, several in the same second."""
    at = int(START.timestamp()) - 100_000
    world.sandbox.seed(
        {"object": "customer", "id": f"cus_{n:06}", "created": at + n // 3, "name": f"customer {n}",
         "email": None, "livemode": False, "metadata": {}, "balance": 0, "test_clock": None}
        for n in numbers
    )  # fmt: skip


def kill_when(world: StripeWorld, settings: Settings, is_time: Callable[[str | None], bool]) -> bool:
    """Run a backfill of the customers in a process of its own; whether it was killed before its end."""
    command = "from apex_pipelines.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "stripe", "backfill", "--only", "customer"],
        env=child_environment(settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            rows = world.rows("select position from stripe_cursors where name = 'backfill:customer'")
            if rows and is_time(rows[0][0]):
                process.kill()
                break
            time.sleep(0.002)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (0, -9), errors.decode()
    return process.returncode != 0


def test_all_that_stripe_has_is_in_the_warehouse_to_the_letter(world: StripeWorld) -> None:
    seed_customers(world, range(250))
    product = world.stripe.v1.products.create({"name": "Zoë's “plan”", "metadata": {"a": "\u0001"}})
    world.stripe.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 9_900})
    assert world.backfill(*CATALOGUE).objects == {
        "product": 1, "price": 1, "coupon": 0, "billing.meter": 0, "customer": 250,
    }  # fmt: skip
    for name in CATALOGUE:
        assert world.landed(name) == world.at_stripe(name)
    assert world.backfill(*CATALOGUE).objects == {}, "what is read is not read again"
    seed_customers(world, range(251))
    assert world.backfill("customer", again=True).objects == {"customer": 251}


def test_a_killed_backfill_goes_on_without_gaps_while_the_list_changes(
    world: StripeWorld, settings: Settings
) -> None:
    resume_through_kills(world, settings, objects=2_500, kills=1)


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_a_backfill_of_100_000_objects_goes_on_without_gaps_after_many_kills(
    world: StripeWorld, settings: Settings
) -> None:
    resume_through_kills(world, settings, objects=100_000, kills=20)


def resume_through_kills(world: StripeWorld, settings: Settings, *, objects: int, kills: int) -> None:
    choices = random.Random(f"{objects} objects")
    seed_customers(world, range(objects))
    gone: set[str] = set()
    reached: list[str | None] = [None]
    killed = 0
    for kill in range(kills):
        steps = choices.randint(1, max(objects // 1_000 // kills, 1))
        seen: list[str] = []

        def is_time(position: str | None, steps: int = steps, seen: list[str] = seen) -> bool:
            if position is not None and position not in (*seen, reached[-1]):
                seen.append(position)
            return len(seen) >= steps

        if not kill_when(world, settings, is_time):
            break
        killed += 1
        [(position,)] = world.rows("select position from stripe_cursors where name = 'backfill:customer'")
        assert position != reached[-1], "each run comes further"
        reached.append(position)
        # The very customer at which reading stands goes, another on either side changes, new ones come.
        number = int(position.removeprefix("cus_"))
        for name in (position, f"cus_{number - 1:06}"):
            world.stripe.v1.customers.delete(name)
            gone.add(name)
        for other in (objects - 1, number + 500, number - 500):
            world.stripe.v1.customers.update(f"cus_{other:06}", {"name": f"changed {kill}"})
        world.stripe.v1.customers.create({"name": f"came after kill {kill}"})
    assert killed == kills
    assert not kill_when(world, settings, lambda _: False)
    world.until(START + timedelta(hours=1))
    world.sweep()
    expected = world.at_stripe("customer")
    assert len(expected) == objects + kills - len(gone)
    landed = world.landed("customer")
    assert {name: body for name, body in landed.items() if body is not None} == expected
    assert not gone & {name for name, body in landed.items() if body is not None}


def test_what_was_deleted_while_nobody_looked_is_found_by_reading_again(world: StripeWorld) -> None:
    seed_customers(world, range(120))
    coupon = world.stripe.v1.coupons.create({"percent_off": 10, "duration": "once"})
    world.backfill("customer", "coupon")
    world.stripe.v1.customers.delete("cus_000007")
    world.stripe.v1.coupons.delete(coupon.id)
    world.until(START + timedelta(days=40))
    with pytest.raises(BackfillNeeded, match="apex stripe backfill --again"):
        world.sweep()
    world.backfill("customer", "coupon", again=True)
    assert world.landed("customer")["cus_000007"] is None
    assert world.landed("coupon") == {coupon.id: None}
    assert len(world.at_stripe("customer")) == 119


def test_a_list_that_is_cut_short_inside_an_object_comes_whole(world: StripeWorld) -> None:
    line = {"object": "line_item", "amount": 1, "currency": "usd", "livemode": False, "invoice": "in_1"}
    lines = [{**line, "id": f"il_{n:03}"} for n in range(130)]
    world.sandbox.seed(
        [{"object": "invoice", "id": "in_1", "created": 1, "customer": "cus_1", "currency": "usd",
          "livemode": False, "lines": {"object": "list", "data": lines}}]
    )  # fmt: skip
    world.backfill("invoice")
    assert set(world.landed("line_item")) == {each["id"] for each in lines}


def test_memory_does_not_grow_with_the_account(world: StripeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is let go before the next: never are more objects held than one batch and one page."""
    seed_customers(world, range(1_000))
    monkeypatch.setattr(reading, "BATCH_OBJECTS", 100)
    held: list[int] = []
    landing = reading.land

    def counting(client, fetched, **more):  # type: ignore[no-untyped-def]
        held.append(len(fetched))
        return landing(client, fetched, **more)

    monkeypatch.setattr(reading, "land", counting)
    world.backfill("customer")
    assert held == [100] * 10
