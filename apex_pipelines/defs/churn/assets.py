"""The churn model and its scores."""

import base64
from datetime import timedelta
from typing import Any

import dagster as dg

from apex_pipelines.churn.reports import TrainingReport
from apex_pipelines.churn.rules import flag_probability
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.lifecycle.triggers import churn_triggers

KINDS = {"python", "scikitlearn"}


def _training_metadata(report: TrainingReport) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "outcome": report.outcome.value,
        "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in report.reasons)),
        "dagster/row_count": report.rows,
        "churned_customers": report.churned_customers,
        "champion": report.champion_version or "none; the health score serves instead",
    }
    if report.metrics:
        lines = [
            f"| {name} | {m.value:.3f} | {m.low:.3f} – {m.high:.3f} |" for name, m in report.metrics.items()
        ]
        table = "\n".join(["| figure | value | 95 % interval |", "|---|---:|---|", *lines])
        metadata["quality"] = dg.MetadataValue.md(table)
    if report.plot is not None:
        encoded = base64.b64encode(report.plot.read_bytes()).decode()
        metadata["plot"] = dg.MetadataValue.md(
            f"![ROC, precision and calibration](data:image/png;base64,{encoded})"
        )
    if report.model_card is not None:
        metadata["model_card"] = dg.MetadataValue.md(report.model_card.read_text())
    return metadata


@dg.asset(
    key=["ml", "churn_model"],
    deps=[dg.AssetKey(["marts", "churn_features"]), dg.AssetKey(["marts", "churn_labels"])],
    group_name="churn",
    kinds=KINDS,
    # Trained on Mondays only.
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=8)),
)
def churn_model(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Champion model of churn: trained on labels known today, promoted only when the gate holds."""
    from apex_pipelines.churn import service  # brings scikit-learn: seconds that no other run should pay

    settings = stores.settings
    with stores.clickhouse(context) as client:
        report = service.train(
            client, settings.model_dir, stores.as_of_date, settings=settings, clock=stores.clock
        )
    return dg.MaterializeResult(metadata=_training_metadata(report))


@dg.asset(
    key=["ml", "churn_scores"],
    deps=[churn_model, dg.AssetKey(["marts", "churn_features"])],
    group_name="churn",
    kinds=KINDS | {"clickhouse"},
)
def churn_scores(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Probability that each active customer leaves, with the features that moved it."""
    from apex_pipelines.churn import service  # see churn_model

    settings = stores.settings
    with stores.clickhouse(context) as client:
        report = service.score(
            client, settings.model_dir, stores.as_of_date, settings=settings, clock=stores.clock
        )
    top = [f"| {c.customer_id} | {c.probability:.2f} | {c.expected_profit:,.2f} |" for c in report.top]
    return dg.MaterializeResult(
        metadata={
            "outcome": report.outcome.value,
            "message": report.message,
            "dagster/row_count": report.scored,
            "flagged": report.flagged,
            "most_worth_writing_to": dg.MetadataValue.md(
                "\n".join(["| customer | probability | expected profit, USD |", "|---|---:|---:|", *top])
            ),
            "drift_psi": dg.MetadataValue.json(report.drift or {}),
        }
    )


@dg.asset(
    key=["lifecycle", "churn_interventions"],
    deps=[churn_scores, dg.AssetKey(["marts", "usage_daily"])],
    group_name="lifecycle",
    kinds={"postgres", "python"},
)
def churn_interventions(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Retention mails to flagged customers, except a random hold-out, and the operator's alert."""
    with stores.postgres() as engine, stores.clickhouse(context) as client:
        report = churn_triggers(
            client, engine, stores.as_of_date, stores.clock,
            flag_probability=flag_probability(),
        )  # fmt: skip
    return dg.MaterializeResult(metadata=report.as_metadata())
