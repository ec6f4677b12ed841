"""May this model serve? A decision with its reasons in words.

Belongs here: the promotion rules, as one pure function. Does not belong here: promoting (`ml.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ml.evaluation import Comparison, Interval


class Verdict(StrEnum):
    """What the gate says about a candidate."""

    PROMOTE = "promote"
    KEEP_CHAMPION = "keep_champion"
    REFUSE = "refuse"


@dataclass(frozen=True)
class GateRules:
    """Thresholds.

    Attributes
    ----------
    min_events : customers who left, in all labelled rows.
    min_test_events : customers who left, in the test rows; with fewer, no interval can be trusted.
    leakage_auc : nobody foresees churn this well; what does has seen the outcome.
    """

    min_events: int = 40
    min_test_events: int = 10
    leakage_auc: float = 0.97


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at.

    Attributes
    ----------
    comparison : against the champion, on test rows that neither model knew; None without a champion to
        compare with, and then `champion_absent_because` says why ("no model serves yet").
    comparison_impossible_because : set when a champion serves but no fair comparison could be made.
    """

    churned_customers: int
    test_churned_customers: int
    auc: Interval
    single_feature_auc: Mapping[str, float]
    comparison: Comparison | None = None
    champion_absent_because: str = "no model serves yet"
    comparison_impossible_because: str | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict and every reason for it, each a sentence."""

    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def promote(self) -> bool:
        return self.verdict is Verdict.PROMOTE


def decide(evidence: Evidence, rules: GateRules) -> Decision:
    """Refuse what can't be trusted, then ask whether it is better beyond noise.

    A first model must beat a coin: the AUC interval's lower bound is above 0.5. A later one must beat the
    champion on the same rows: the paired AUC gain's lower bound is above 0, and its probabilities are not
    worse beyond noise (Brier).
    """
    refusals = _refusals(evidence, rules)
    if refusals:
        return Decision(Verdict.REFUSE, tuple(refusals))
    if evidence.comparison_impossible_because is not None:
        reason = f"The champion can't be compared fairly: {evidence.comparison_impossible_because}."
        return Decision(Verdict.KEEP_CHAMPION, (reason,))
    if evidence.comparison is None:
        return _first_model(evidence)
    return _challenger(evidence.comparison, rules)


def _refusals(evidence: Evidence, rules: GateRules) -> list[str]:
    reasons = []
    for feature, auc in sorted(evidence.single_feature_auc.items(), key=lambda item: -item[1]):
        if auc > rules.leakage_auc:
            reasons.append(
                f"Leakage alarm: feature {feature!r} alone tells leavers from stayers with AUC {auc:.3f} "
                f"(limit {rules.leakage_auc:.2f}); it has probably seen what came after the feature date."
            )
    if evidence.auc.value > rules.leakage_auc:
        reasons.append(
            f"Leakage alarm: test AUC {evidence.auc.value:.3f} is above {rules.leakage_auc:.2f}, "
            "which honest features don't reach."
        )
    if evidence.churned_customers < rules.min_events:
        reasons.append(
            f"Too few events: {evidence.churned_customers} customers left, {rules.min_events} are needed."
        )
    if evidence.test_churned_customers < rules.min_test_events:
        reasons.append(
            f"Too few events in the test rows: {evidence.test_churned_customers} customers left, "
            f"{rules.min_test_events} are needed."
        )
    return reasons


def _first_model(evidence: Evidence) -> Decision:
    because = evidence.champion_absent_because
    # Written so that a NaN bound refuses.
    if evidence.auc.low > 0.5:
        return Decision(
            Verdict.PROMOTE,
            (f"There is no champion to beat ({because}), and test AUC {evidence.auc} is above chance.",),
        )
    return Decision(
        Verdict.REFUSE,
        (f"There is no champion to beat ({because}), but test AUC {evidence.auc} may be chance.",),
    )


def _challenger(comparison: Comparison, rules: GateRules) -> Decision:
    rows = f"on {comparison.rows:,} rows that neither model knew"
    if comparison.churned_customers < rules.min_test_events:
        return Decision(
            Verdict.KEEP_CHAMPION,
            (f"Only {comparison.churned_customers} customers left {rows}: too few to tell the two apart.",),
        )
    if not comparison.auc_gain.low > 0:
        return Decision(
            Verdict.KEEP_CHAMPION,
            (f"Not better beyond noise {rows}: AUC gain {comparison.auc_gain}.",),
        )
    if comparison.brier_gain.high < 0:
        return Decision(
            Verdict.KEEP_CHAMPION,
            (
                f"Orders better (AUC gain {comparison.auc_gain}) but its probabilities are worse {rows}: "
                f"Brier gain {comparison.brier_gain}.",
            ),
        )
    return Decision(Verdict.PROMOTE, (f"Better than the champion {rows}: AUC gain {comparison.auc_gain}.",))
