"""A model's life on the real warehouse: trained, served, scored with, challenged, tampered with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.churn import service, store
from apex_pipelines.churn.reports import ScoringOutcome, TrainingOutcome
from apex_pipelines.churn.rules import flag_probability, holdout
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from ml import registry
from tests.churn.marts import churn_marts
from tests.ml.churn_worlds import AS_OF, HORIZON, panel, without_truth


def today(customers: int = 900) -> pl.DataFrame:
    """Customers of AS_OF, with features and no label."""
    frame = without_truth(panel(customers=customers, dates=1, seed=21))
    return frame.with_columns(feature_date=pl.lit(AS_OF))


@pytest.fixture
def marts(warehouse: Client) -> Iterator[Client]:
    with churn_marts(warehouse, without_truth(panel(customers=900)), today()):
        yield warehouse


def test_train_then_score_then_both_again_change_nothing(
    marts: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    report = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert report.outcome is TrainingOutcome.PROMOTED
    assert report.metrics is not None
    assert report.metrics["auc"].low > 0.6
    assert report.champion_version == report.model_version == registry.champion_version(tmp_path)
    assert report.model_card is not None
    assert "**Gate: promote.**" in report.model_card.read_text()
    assert report.plot is not None
    assert report.plot.read_bytes().startswith(b"\x89PNG")
    json.dumps(report.as_dict())

    scored = service.score(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert scored.outcome is ScoringOutcome.SCORED
    assert scored.scored == 900
    json.dumps(scored.as_dict())
    first = store.latest_scores(marts, AS_OF).sort("customer_id")
    assert first.height == 900
    assert scored.top[0].expected_profit == first["expected_profit"].to_numpy().max()
    held = [holdout(customer, settings.churn_holdout_share) for customer in first["customer_id"]]
    assert first["holdout"].cast(pl.Boolean).to_list() == held
    assert scored.flagged == first.filter(pl.col("probability") > flag_probability()).height
    assert json.loads(first["reasons"][0]) is not None

    clock.advance(timedelta(hours=1))
    repeated = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert repeated.outcome is TrainingOutcome.UNCHANGED
    service.score(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    second = store.latest_scores(marts, AS_OF).sort("customer_id")
    assert second.drop("scored_at").equals(first.drop("scored_at"))


def test_with_too_few_events_training_says_so_and_scoring_leaves_it_to_the_health_score(
    warehouse: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    with churn_marts(warehouse, without_truth(panel(customers=50, dates=10)), today(50)):
        report = service.train(warehouse, tmp_path, AS_OF, settings=settings, clock=clock)
        scored = service.score(warehouse, tmp_path, AS_OF, settings=settings, clock=clock)
    assert report.outcome is TrainingOutcome.NOT_ENOUGH_EVENTS
    assert "health score serves instead" in report.reasons[0]
    assert report.champion_version is None
    assert scored.outcome is ScoringOutcome.NO_CHAMPION
    assert "health score serves instead" in scored.message
    assert store.latest_scores(warehouse, AS_OF).is_empty()


def test_empty_marts_are_not_an_error(
    warehouse: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    nothing = without_truth(panel(customers=2, dates=2)).head(0)
    with churn_marts(warehouse, nothing, nothing):
        report = service.train(warehouse, tmp_path, AS_OF, settings=settings, clock=clock)
    assert report.outcome is TrainingOutcome.NOT_ENOUGH_EVENTS


def test_a_later_model_of_the_same_truth_does_not_replace_the_champion(
    marts: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    earlier = service.train(marts, tmp_path, AS_OF - timedelta(days=28), settings=settings, clock=clock)
    assert earlier.outcome is TrainingOutcome.PROMOTED
    later = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert later.outcome is TrainingOutcome.KEPT_CHAMPION
    assert "beyond noise" in later.reasons[0]
    assert later.champion_version == earlier.model_version
    assert later.model_version != earlier.model_version


def test_a_model_that_learned_something_new_replaces_a_champion_that_did_not(
    warehouse: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    world = without_truth(panel(customers=1500))
    blind = world.with_columns(
        pl.lit(0.0).alias(name) for name in ("days_since_last_login", "usage_change_pct")
    )
    with churn_marts(warehouse, blind, today()):
        first = service.train(warehouse, tmp_path, AS_OF, settings=settings, clock=clock)
    assert first.outcome is TrainingOutcome.PROMOTED
    with churn_marts(warehouse, world, today()):
        second = service.train(warehouse, tmp_path, AS_OF, settings=settings, clock=clock)
    assert second.outcome is TrainingOutcome.PROMOTED
    assert "Better than the champion" in second.reasons[0]
    assert second.champion_version == second.model_version


def test_a_tampered_champion_scores_nobody_and_the_next_training_heals_it(
    marts: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    report = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert report.model_version is not None
    artifact = tmp_path / registry.VERSIONS / report.model_version / registry.ARTIFACT
    artifact.write_bytes(artifact.read_bytes()[:-1])
    with pytest.raises(registry.ChampionCorrupted):
        service.score(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert store.latest_scores(marts, AS_OF).is_empty()
    healed = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert healed.outcome is TrainingOutcome.PROMOTED
    assert "can't be loaded" in healed.reasons[0]
    assert service.score(marts, tmp_path, AS_OF, settings=settings, clock=clock).scored == 900


def test_marts_built_for_another_horizon_are_refused_with_both_numbers(
    marts: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    settings.churn_horizon_days = 90
    with pytest.raises(store.ChurnInputMissing, match=f"horizon of {HORIZON} days, the settings say 90"):
        service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)


def test_a_champion_of_another_question_is_replaced_not_compared(
    marts: Client, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    service.train(marts, tmp_path, AS_OF - timedelta(days=28), settings=settings, clock=clock)
    settings.churn_label = "inactivity"
    report = service.train(marts, tmp_path, AS_OF, settings=settings, clock=clock)
    assert report.outcome is TrainingOutcome.PROMOTED
    assert "another question" in report.reasons[0]
