"""A usage sync that is interrupted anywhere, then finished: Stripe has what was counted, nothing twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.stripe.interruptions import Interruptions
from tests.stripe.usage_world import METRICS, UsageWorld

DAY = timedelta(days=1)


def _use_of_a_while(usage: UsageWorld, chance: random.Random, customers: list[str]) -> None:
    """New days, late events and corrections, some of them too late for Stripe."""
    changed = {}
    for _ in range(chance.randrange(1, 30)):
        back = chance.choice([1, 1, 1, 2, 3, chance.randrange(1, 46)])
        # A day that a billing period cuts has two slots; now and then both begin in the same minute.
        offset = chance.choice(
            [timedelta(), timedelta(), timedelta(seconds=37), timedelta(hours=12, minutes=34)]
        )
        start = usage.yesterday - back * DAY + offset
        key = (chance.choice(customers), chance.choice(METRICS), start)
        changed[key] = usage.counted.get(key, 0) + chance.choice([1, 1, 1, -1]) * chance.randrange(1, 10**9)
    usage.count(changed, slot_length=timedelta(seconds=30))


def _time_to_pass(chance: random.Random) -> timedelta:
    longest = chance.choice([2, 2, 2, 30, 30, 100])
    return timedelta(seconds=chance.randrange(longest * 3_600))


def assert_told_exactly(usage: UsageWorld) -> None:
    """Each slot's use is at Stripe, or stands in the ledger as too late; summaries agree with it."""
    told, too_late = usage.at_stripe(), usage.ledger("invoiced")
    assert usage.ledger("pending") == {}
    assert usage.ledger() == usage.used()
    assert usage.ledger("sent") == told
    keys = {*told, *too_late}
    assert {key: total for key in keys if (total := told.get(key, 0) + too_late.get(key, 0))} == usage.used()
    for customer in {customer for customer, _, _ in usage.counted}:
        for metric in METRICS:
            expected = sum(use for key, use in told.items() if key[:2] == (customer, metric))
            assert usage.summary(customer, metric) == expected, (customer, metric)


def _interrupt_and_finish(usage: UsageWorld, seed: int, times: int) -> Interruptions:
    chance = random.Random(seed)
    customers = usage.prepare(customers=5)
    usage.settings.stripe_timeout_seconds = 0.4
    interruptions = Interruptions(usage, chance)
    for _ in range(times):
        _use_of_a_while(usage, chance, customers)
        interruptions.interrupt_a_sync()
        usage.move(_time_to_pass(chance))
    usage.settings.stripe_timeout_seconds = 20
    for _ in range(3):
        left = usage.sync().left
        usage.move(DAY)
    assert left == []
    assert_told_exactly(usage)
    return interruptions


def test_a_few_interruptions(usage: UsageWorld, record_property: Callable[[str, object], None]) -> None:
    interruptions = _interrupt_and_finish(usage, seed=6, times=6)
    # Some of them come when the call that they were meant for has just ended.
    assert sum(interruptions.happened.values()) >= 4
    record_property("sigkills", {"usage sync": _killed(interruptions)})


@pytest.mark.faults
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", [60, 61])
def test_two_hundred_interruptions(
    usage: UsageWorld, record_property: Callable[[str, object], None], seed: int
) -> None:
    interruptions = _interrupt_and_finish(usage, seed, times=200)
    print(dict(interruptions.happened))
    assert _killed(interruptions) > 60
    assert usage.ledger("invoiced"), "nothing came too late"
    record_property("sigkills", {"usage sync": _killed(interruptions)})


def _killed(interruptions: Interruptions) -> int:
    return sum(times for how, times in interruptions.happened.items() if how.startswith("killed"))
