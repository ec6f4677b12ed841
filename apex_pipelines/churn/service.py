"""Trains and scores on the marts: read, run `ml`, store, report.

Belongs here: the order of steps. Does not belong here: queries (`churn.store`), modelling (`ml`).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
from clickhouse_connect.driver.client import Client

from apex_pipelines.churn import store
from apex_pipelines.churn.reports import (
    RankedCustomer,
    ScoringOutcome,
    ScoringReport,
    TrainingOutcome,
    TrainingReport,
)
from apex_pipelines.churn.rules import flag_probability, flagged, holdout
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings
from ml import drift, evaluation, gate, registry, scoring, training
from ml.economics import RetentionEconomics
from ml.features import FeatureFrameError, customer_codes, labels, matrix
from ml.model_card import model_card
from ml.plots import performance_png

log = get_logger(__name__)
KEPT_VERSIONS = 10
CARD, PLOT = "model_card.md", "performance.png"

_OUTCOMES = {
    gate.Verdict.PROMOTE: TrainingOutcome.PROMOTED,
    gate.Verdict.KEEP_CHAMPION: TrainingOutcome.KEPT_CHAMPION,
    gate.Verdict.REFUSE: TrainingOutcome.REFUSED,
}


def train(
    client: Client, model_dir: Path, as_of_date: date, *, settings: Settings, clock: Clock
) -> TrainingReport:
    """Train on every label known on `as_of_date`, and promote the model if the gate lets it.

    Too few events are an outcome, not an error. Training the same data again changes nothing.

    Raises
    ------
    apex_pipelines.churn.store.ChurnInputMissing
        If the churn marts are missing, or were built for another horizon than the settings'.
    ml.features.FeatureFrameError
        If the mart's columns can't be learned from.
    """
    began = time.perf_counter()
    frame = store.read_training_frame(client, as_of_date)
    _require_horizon(frame, settings.churn_horizon_days)
    recipe = training.TrainingSettings(
        horizon_days=settings.churn_horizon_days, min_events=settings.churn_min_events
    )
    result = training.train(frame, recipe)
    champion, absent_because = _champion(model_dir)
    if isinstance(result, training.NotEnoughEvents):
        log.info("churn model not trained", reason=result.message, rows=frame.height)
        return TrainingReport(
            outcome=TrainingOutcome.NOT_ENOUGH_EVENTS,
            as_of_date=as_of_date,
            reasons=(result.message,),
            rows=frame.height,
            seconds=time.perf_counter() - began,
            champion_version=champion.metadata.version if champion else None,
            churned_customers=result.churned_customers,
        )
    sampling = _sampling(store.labelled_rows(client, as_of_date), frame.height)
    result = replace(result, notes=(*sampling, *result.notes))
    version = result.model.version
    if champion is not None and champion.metadata.version == version:
        outcome = TrainingOutcome.UNCHANGED
        reasons: tuple[str, ...] = (f"The same data gives the same model: {version} serves already.",)
    else:
        decision = gate.decide(
            _evidence(result, champion, absent_because, settings),
            gate.GateRules(min_events=settings.churn_min_events),
        )
        metadata = _metadata(result, settings, clock)
        registry.save(
            model_dir,
            result.model,
            metadata,
            {
                CARD: model_card(result, metadata, decision).encode(),
                PLOT: performance_png(result.curves, result.evaluation, f"Churn model {version}"),
            },
        )
        if decision.promote:
            registry.promote(model_dir, version)
            champion = registry.load_champion(model_dir)
        registry.prune(model_dir, keep=KEPT_VERSIONS, besides=version)
        outcome, reasons = _OUTCOMES[decision.verdict], decision.reasons
    log.info("churn model trained", version=version, outcome=outcome.value, reasons=list(reasons))
    home = model_dir / registry.VERSIONS / version
    return TrainingReport(
        outcome=outcome,
        as_of_date=as_of_date,
        reasons=reasons,
        rows=result.rows,
        seconds=time.perf_counter() - began,
        champion_version=champion.metadata.version if champion else None,
        churned_customers=result.churned_customers,
        customers=result.customers,
        model_version=version,
        algorithm=result.model.algorithm.value,
        calibration=result.model.calibrator.method,
        metrics=result.evaluation.intervals(),
        base_rate=result.evaluation.base_rate,
        test_rows=result.evaluation.rows,
        test_start=result.split.test_start,
        candidates={candidate.algorithm.value: candidate.auc for candidate in result.candidates},
        notes=result.notes,
        model_card=home / CARD,
        plot=home / PLOT,
    )


def score(
    client: Client,
    model_dir: Path,
    as_of_date: date,
    *,
    settings: Settings,
    clock: Clock,
    top: int = 20,
) -> ScoringReport:
    """Score the customers active on `as_of_date` with the champion and store the scores; safe to repeat.

    Without a champion nothing is written, and the report says that the health score serves instead.

    Raises
    ------
    ml.registry.ChampionCorrupted
        If the champion is not what was saved: nothing is scored with it.
    ml.features.FeatureFrameError
        If the mart lacks a feature of the champion.
    """
    began = time.perf_counter()
    try:
        champion = registry.load_champion(model_dir)
    except registry.ChampionMissing as error:
        return ScoringReport(
            outcome=ScoringOutcome.NO_CHAMPION,
            as_of_date=as_of_date,
            message=f"Nothing scored: {error}. The health score serves instead.",
            seconds=time.perf_counter() - began,
        )
    frame = store.read_scoring_frame(client, as_of_date)
    version = champion.metadata.version
    if frame.is_empty():
        return ScoringReport(
            outcome=ScoringOutcome.NO_CUSTOMERS,
            as_of_date=as_of_date,
            message=f"Nothing scored: marts.churn_features has no customer on {as_of_date}.",
            seconds=time.perf_counter() - began,
            model_version=version,
        )
    scores = scoring.score(champion.model, frame, RetentionEconomics()).with_columns(
        pl.col("customer_id")
        .map_elements(
            lambda customer: holdout(customer, settings.churn_holdout_share), return_dtype=pl.Boolean
        )
        .alias("holdout"),
        pl.lit(clock.now()).cast(pl.Datetime("us", "UTC")).alias("scored_at"),
    )
    stored = store.write_scores(client, scores)
    at_risk = scores.filter(
        pl.Series([flagged(value, flag_probability()) for value in scores["probability"]])
    )
    features = champion.model.features
    moved = drift.psi(champion.metadata.drift_reference, matrix(frame, features), features)
    log.info("churn scored", version=version, customers=stored, flagged=at_risk.height)
    return ScoringReport(
        outcome=ScoringOutcome.SCORED,
        as_of_date=as_of_date,
        message=f"{stored:,} customers scored by {version}, {at_risk.height:,} flagged.",
        seconds=time.perf_counter() - began,
        model_version=version,
        scored=stored,
        flagged=at_risk.height,
        flagged_holdout=int(at_risk["holdout"].sum()),
        mean_probability=float(scores["probability"].to_numpy().mean()),
        top=tuple(
            RankedCustomer(**row)
            for row in scores.head(top)
            .select("customer_id", "probability", "expected_profit", "reasons", "holdout")
            .iter_rows(named=True)
        ),
        drift=dict(sorted(moved.items(), key=lambda item: -item[1])),
    )


def _champion(model_dir: Path) -> tuple[registry.StoredModel | None, str]:
    """The champion, or why there is none that a candidate could be compared with."""
    try:
        return registry.load_champion(model_dir), ""
    except registry.ChampionMissing:
        return None, "no model serves yet"
    except registry.ChampionCorrupted as error:
        # A champion that can't be loaded serves nobody, so a good candidate may take its place.
        log.error("churn champion corrupted", error=str(error))
        return None, f"the champion can't be loaded: {error}"


def _evidence(
    result: training.TrainingResult,
    champion: registry.StoredModel | None,
    absent_because: str,
    settings: Settings,
) -> gate.Evidence:
    comparison, impossible = None, None
    if champion is not None:
        old = champion.metadata
        if (old.label, old.horizon_days) != (settings.churn_label, settings.churn_horizon_days):
            absent_because = (
                f"the champion foresees {old.label} in {old.horizon_days} days, another question than "
                f"{settings.churn_label} in {settings.churn_horizon_days} days"
            )
        else:
            try:
                comparison, impossible = _compare(result, champion)
            except FeatureFrameError as error:
                absent_because = f"the champion can't score today's features: {error}"
    return gate.Evidence(
        churned_customers=result.churned_customers,
        test_churned_customers=result.evaluation.churned_customers,
        auc=result.evaluation.auc,
        single_feature_auc=result.single_feature_auc,
        comparison=comparison,
        champion_absent_because=absent_because,
        comparison_impossible_because=impossible,
    )


def _compare(
    result: training.TrainingResult, champion: registry.StoredModel
) -> tuple[evaluation.Comparison | None, str | None]:
    """Paired comparison on test rows that are news to the champion, or why there can be none."""
    since = date.fromisoformat(champion.metadata.labels_known_until)
    news = (result.test["feature_date"] >= since).to_numpy()
    rows = result.test.filter(pl.Series(news))
    churned = labels(rows)
    if len(churned) == 0 or churned.min() == churned.max():
        return None, f"no test rows of both classes since {since}, up to which the champion knew the labels"
    return (
        evaluation.compare(
            churned,
            champion.model.probability(rows),
            result.test_probability[news],
            customer_codes(rows),
        ),
        None,
    )


def _metadata(result: training.TrainingResult, settings: Settings, clock: Clock) -> registry.ModelMetadata:
    return registry.ModelMetadata(
        version=result.model.version,
        algorithm=result.model.algorithm.value,
        features=result.model.features,
        label=settings.churn_label,
        horizon_days=settings.churn_horizon_days,
        data_from=result.data_from.isoformat(),
        data_until=result.data_until.isoformat(),
        labels_known_until=result.labels_known_until.isoformat(),
        rows=result.rows,
        customers=result.customers,
        churned_customers=result.churned_customers,
        metrics={
            name: (item.value, item.low, item.high)
            for name, item in result.evaluation.intervals().items()
            if all(map(math.isfinite, (item.value, item.low, item.high)))
        },
        library_versions=training.library_versions(),
        drift_reference=result.drift_reference,
        created_at=clock.now().isoformat(),
        notes=result.notes,
    )


def _sampling(known: int, read: int) -> tuple[str, ...]:
    if known <= store.MAX_ROWS:
        return ()
    return (
        f"{read:,} of {known:,} labelled rows were read, those of customers drawn at random, because memory "
        f"is meant for {store.MAX_ROWS:,} rows",
    )


def _require_horizon(frame: pl.DataFrame, horizon_days: int) -> None:
    """Marts built for another horizon would turn the splits' embargo into a lie."""
    spans = frame.select((pl.col("label_known_on") - pl.col("feature_date")).dt.total_days().unique())
    found = sorted(spans.to_series().to_list())
    if any(days != horizon_days for days in found):
        raise store.ChurnInputMissing(
            f"marts.churn_labels was built for a horizon of {', '.join(map(str, found))} days, the settings "
            f"say {horizon_days}; build the marts again with churn_horizon_days={horizon_days}"
        )
