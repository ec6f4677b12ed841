"""What the simulated customers live through and send: always the same for a seed, and true to its story."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest

from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.platform import catalogue
from apex_pipelines.sandbox.simulator.life import Life, live
from apex_pipelines.sandbox.simulator.population import Archetype, Simulation, SimulationError, population
from apex_pipelines.sandbox.simulator.telemetry import MAX_BEHIND_DAYS, Kind, SentEvent, deliveries

SMALL = Simulation(seed=7, customers=24, days=60)
WHOLE = Simulation()


@cache
def stories(simulation: Simulation) -> list[Life]:
    return [live(simulation, customer) for customer in population(simulation)]


def everything(simulation: Simulation) -> list[tuple[int, date, SentEvent]]:
    return [
        (story.customer.index, day, sent)
        for story in stories(simulation)
        for day, events in deliveries(simulation.seed, story, simulation.start_date, simulation.end_date)
        for sent in events
    ]


def test_the_same_seed_tells_the_same_story_and_another_seed_another() -> None:
    first = everything(SMALL)
    stories.cache_clear()
    assert everything(SMALL) == first
    other = Simulation(seed=8, customers=24, days=60)
    assert not {s.event.event_id for *_, s in first} & {s.event.event_id for *_, s in everything(other)}


def test_a_customer_does_not_depend_on_how_many_there_are() -> None:
    larger = Simulation(seed=7, customers=30, days=60)
    assert population(larger)[:24] == population(SMALL)
    assert [event for event in everything(larger) if event[0] < 24] == everything(SMALL)


def test_going_on_from_a_day_sends_what_the_whole_run_would_have_sent() -> None:
    middle = SMALL.start_date + timedelta(days=33)
    for story in stories(SMALL):
        whole = list(deliveries(7, story, SMALL.start_date, SMALL.end_date))
        first = list(deliveries(7, story, SMALL.start_date, middle))
        rest = list(deliveries(7, story, middle, SMALL.end_date))
        assert first + rest == whole


def test_every_metric_of_the_catalogue_is_sent_by_every_active_kind() -> None:
    sent = Counter(event.event.metric_type for *_, event in everything(SMALL))
    assert set(sent) == set(catalogue.telemetry_metrics())


def test_repeats_follow_their_original_and_corrections_stay_below_it() -> None:
    originals: dict[str, SentEvent] = {}
    kinds: Counter[Kind] = Counter()
    for _, _, sent in everything(Simulation(seed=7, customers=80, days=60)):
        kinds[sent.kind] += 1
        name = sent.event.event_id
        if sent.kind in (Kind.ORIGINAL, Kind.LATE):
            assert name not in originals
            originals[name] = sent
        elif sent.kind is Kind.CORRECTION:
            corrected = originals[str(sent.event.corrects_event_id)]
            assert -corrected.stored < sent.stored < 0
            assert sent.event.reason
            assert sent.event.metric_type == corrected.event.metric_type
        else:
            first = originals[name].event
            assert sent.event.quantity == first.quantity
            assert (sent.event.timestamp == first.timestamp) == (sent.kind is Kind.REPEAT)
    assert all(kinds[kind] > 0 for kind in Kind)
    repeats = kinds[Kind.REPEAT] + kinds[Kind.REPEAT_OTHER_TIMESTAMP]
    assert 0.003 < repeats / sum(kinds.values()) < 0.007


def test_nothing_is_sent_from_the_future_or_later_than_said() -> None:
    for _, day, sent in everything(SMALL):
        at = datetime.fromisoformat(sent.event.timestamp)
        sent_by = datetime.combine(day, time(), UTC) + timedelta(days=1)
        assert at <= sent_by
        assert sent_by - at <= timedelta(days=MAX_BEHIND_DAYS + 1)


def test_the_population_is_believable() -> None:
    told = stories(WHOLE)
    left = [story for story in told if story.ends_at is not None]
    days = sum(len(story.impressions) for story in told)
    assert 100 <= len(left) <= 150
    converted = [story for story in left if story.cause != "trial_over"]
    assert 0.03 <= len(converted) / days * 30 <= 0.05
    assert {story.cause for story in left} == {"disengaged", "errors", "sudden", "unpaid", "trial_over"}
    assert {story.customer.archetype for story in told} == set(Archetype)
    assert {story.customer.plan_type for story in told} == set(catalogue.plans())
    assert sum(bool(story.plan_changes) for story in told) > 20
    week_ago = WHOLE.end_date - timedelta(days=7)
    assert any(story.customer.created_at.date() == week_ago and not story.impressions.any() for story in told)


def test_who_leaves_disengaged_shows_it_before_and_many_who_show_it_stay() -> None:
    gone = [s for s in stories(WHOLE) if s.cause in ("disengaged", "errors") and len(s.engagement) > 20]
    assert np.mean([story.engagement[-7:].mean() for story in gone]) < 0.6
    stayed = [story for story in stories(WHOLE) if story.ends_at is None]
    assert sum(bool((story.engagement < 0.5).any()) for story in stayed) > 20


def test_the_story_of_one_who_never_pays() -> None:
    story = next(s for s in stories(WHOLE) if s.cause == "unpaid")
    assert story.ends_at is not None
    last = [payment for payment in story.payments if payment.invoice_id == story.payments[-1].invoice_id]
    assert [payment.attempt_number for payment in last] == [1, 2, 3, 4]
    assert [(payment.at - last[0].at).days for payment in last] == [0, 3, 4, 7]
    assert all(payment.failure_code for payment in last)
    hour = timedelta(hours=1)
    assert story.status_at(last[0].at - hour) is SubscriptionStatus.ACTIVE
    assert story.status_at(last[0].at + hour) is SubscriptionStatus.PAST_DUE
    assert story.status_at(last[3].at + hour) is SubscriptionStatus.SUSPENDED
    assert story.status_at(story.ends_at + hour) is SubscriptionStatus.CANCELED
    silent = (last[3].at.date() - story.first_day).days + 1
    assert not story.impressions[silent:].any()
    sent = [day for day, _ in deliveries(42, story, WHOLE.start_date, WHOLE.end_date)]
    assert max(sent) < story.ends_at.date()


def test_the_story_of_a_trial_that_does_not_convert() -> None:
    story = next(s for s in stories(WHOLE) if s.cause == "trial_over")
    assert story.trial_end == story.ends_at == story.customer.created_at + timedelta(days=14)
    assert story.payments == []
    assert story.status_at(story.customer.created_at + timedelta(days=3)) is SubscriptionStatus.TRIALING


@pytest.mark.parametrize("wrong", [{"customers": 0}, {"days": 0}, {"seed": -1}])
def test_a_simulation_that_can_not_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SimulationError, match=next(iter(wrong))):
        replace(SMALL, **wrong)
