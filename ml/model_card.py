"""The model card: what a person should know before trusting the scores.

Belongs here: its text. Does not belong here: any figure that training did not measure.
"""

from __future__ import annotations

from ml.gate import Decision
from ml.registry import ModelMetadata
from ml.training import TrainingResult

FIGURES = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "brier_skill": "Brier skill (0: no better than the base rate)",
    "ece": "Calibration error (ECE)",
    "top_decile_lift": "Lift in the top tenth",
    "profit_per_1000_usd": "Profit per 1,000 customers (USD, by assumption)",
}


def model_card(result: TrainingResult, metadata: ModelMetadata, decision: Decision) -> str:
    """Markdown text of the card."""
    tested, split = result.evaluation, result.split
    figures = tested.intervals()
    lines = [
        f"# Churn model {metadata.version}",
        "",
        f"Foresees: {metadata.label.replace('_', ' ')} within {metadata.horizon_days} days of the feature "
        f"date. Made {metadata.created_at} by {metadata.algorithm.replace('_', ' ')}, "
        f"calibrated by {result.model.calibrator.method}.",
        "",
        f"**Gate: {decision.verdict.replace('_', ' ')}.** " + " ".join(decision.reasons),
        "",
        "## Quality on held-out later dates",
        "",
        f"{tested.rows:,} rows of {tested.customers:,} customers from {split.test_start} on, of whom "
        f"{tested.churned_customers:,} left (base rate {tested.base_rate:.3f}). "
        "Intervals: bootstrap by customer, 95 %.",
        "",
        "| figure | value | from | to |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {figures[key].value:.4g} | {figures[key].low:.4g} | {figures[key].high:.4g} |"
            for key, name in FIGURES.items()
        ),
        "",
        "## Who competed",
        "",
        "Rolling origins before the test: "
        + ", ".join(str(fold.origin) for fold in split.folds)
        + ". Every model saw only labels known at its origin.",
        "",
        "| algorithm | AUC | average precision | |",
        "|---|---:|---:|---|",
        *(
            f"| {candidate.algorithm.replace('_', ' ')} | {candidate.auc:.3f} | "
            f"{candidate.average_precision:.3f} | {'chosen' if candidate.chosen else ''} |"
            for candidate in result.candidates
        ),
        "",
        "## Data",
        "",
        f"{result.rows:,} labelled rows of {result.customers:,} customers, {result.data_from} to "
        f"{result.data_until}; {result.churned_customers:,} customers left. Fitted on {result.fitted_rows:,} "
        f"rows whose label was known on {split.test_start}; {split.embargoed:,} rows lay in the embargo and "
        "were used for nothing.",
        *(f"\nNote: {note}." for note in result.notes),
        "",
        "| feature | AUC by itself |",
        "|---|---:|",
        *(f"| {name} | {auc:.3f} |" for name, auc in result.single_feature_auc.items()),
        "",
        "## Limits",
        "",
        "- Probabilities hold for customers like those of the data window; drift is watched per feature.",
        "- Reasons say what moved the model, not what causes churn.",
        "- Profit rests on assumed save and take rates until the hold-out has measured them.",
        "",
        "Libraries: "
        + ", ".join(f"{name} {version}" for name, version in metadata.library_versions.items())
        + f". Artifact SHA-256 `{metadata.artifact_sha256 or 'see metadata.json'}`.",
    ]
    return "\n".join(lines) + "\n"
