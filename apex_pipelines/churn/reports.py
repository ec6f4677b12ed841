"""What training and scoring tell the person who started them.

Belongs here: the results' shape and their words. Does not belong here: printing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

from ml.evaluation import Interval


class TrainingOutcome(StrEnum):
    PROMOTED = "promoted"
    KEPT_CHAMPION = "kept_champion"
    REFUSED = "refused"
    UNCHANGED = "unchanged"
    NOT_ENOUGH_EVENTS = "not_enough_events"


class ScoringOutcome(StrEnum):
    SCORED = "scored"
    NO_CHAMPION = "no_champion"
    NO_CUSTOMERS = "no_customers"


@dataclass(frozen=True)
class TrainingReport:
    """How a training went.

    Attributes
    ----------
    reasons : why it ended so, in sentences.
    metrics : figures on the held-out dates with 95 % intervals; empty when nothing was trained.
    candidates : algorithm → mean AUC on the rolling folds.
    champion_version : what serves now; None when the health score has to.
    model_card, plot : files of the trained version.
    seconds : elapsed.
    """

    outcome: TrainingOutcome
    as_of_date: date
    reasons: tuple[str, ...]
    rows: int
    seconds: float
    champion_version: str | None
    churned_customers: int = 0
    customers: int = 0
    model_version: str | None = None
    algorithm: str | None = None
    calibration: str | None = None
    metrics: dict[str, Interval] | None = None
    base_rate: float | None = None
    test_rows: int = 0
    test_start: date | None = None
    candidates: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    model_card: Path | None = None
    plot: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON-ready values."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class RankedCustomer:
    """One line of the list of customers whom it pays most to write to."""

    customer_id: str
    probability: float
    expected_profit: float
    reasons: str
    holdout: bool


@dataclass(frozen=True)
class ScoringReport:
    """How a scoring went.

    Attributes
    ----------
    message : one sentence for people.
    flagged : customers above the flag threshold; `flagged_holdout` of them get no mail.
    top : the most profitable to write to, best first.
    drift : PSI per feature, highest first; above 0.25 the population has moved.
    """

    outcome: ScoringOutcome
    as_of_date: date
    message: str
    seconds: float
    model_version: str | None = None
    scored: int = 0
    flagged: int = 0
    flagged_holdout: int = 0
    mean_probability: float | None = None
    top: tuple[RankedCustomer, ...] = ()
    drift: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON-ready values."""
        return _plain(asdict(self))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, date | Path) else value for name, value in values.items()}
