"""The business's own data (metrics, plans, thresholds), read from the same seed files that dbt loads.

Belongs here: reading and typing these files. Does not belong here: any rule that uses them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from apex_pipelines.settings import PROJECT_ROOT

SEEDS = PROJECT_ROOT / "dbt_project" / "seeds"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the catalogue.

    Attributes
    ----------
    scale : int
        Decimal places kept: a quantity in `unit` is stored as ``quantity * 10**scale``, a whole number.
    kind : str
        `usage` (counted and billed), `signal` (read by models only), or `life` (what happened to a customer,
        reported by the site and the console and never by SDKs).
    metadata_key : str or None
        Key that each event's metadata must carry, such as the feature's name.
    """

    metric_type: str
    unit: str
    scale: int
    kind: str
    metadata_key: str | None
    description: str


@dataclass(frozen=True, slots=True)
class PlanAllowance:
    """What a plan includes of one metric in a billing period, and the price of use beyond it.

    Attributes
    ----------
    included_units : int
        In the metric's unit.
    overage_price_cents, overage_units : int or None
        So many minor units for so many of the metric's units; both None: the plan's own effective rate, which
        is its month's price for what it includes.
    """

    metric_type: str
    included_units: int
    overage_price_cents: int | None
    overage_units: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan of the catalogue; price in minor units (cents) a month, allowances by `metric_type`."""

    plan_type: str
    name: str
    base_price_cents: int
    currency: str
    trial_days: int
    rank: int
    allowances: Mapping[str, PlanAllowance]

    def included(self, metric_type: str) -> int:
        """Units of the metric that a billing period includes; 0 when it has no allowance."""
        allowance = self.allowances.get(metric_type)
        return 0 if allowance is None else allowance.included_units


def _rows(name: str, folder: Path = SEEDS) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def metrics() -> dict[str, Metric]:
    """Metrics by `metric_type`, in the catalogue's order."""
    return {
        row["metric_type"]: Metric(
            metric_type=row["metric_type"],
            unit=row["unit"],
            scale=int(row["scale"]),
            kind=row["kind"],
            metadata_key=row["metadata_key"] or None,
            description=row["description"],
        )
        for row in _rows("metric_catalogue")
    }


@cache
def telemetry_metrics() -> dict[str, Metric]:
    """The metrics that a customer's own key may report: all but those of kind `life`."""
    return {name: metric for name, metric in metrics().items() if metric.kind != "life"}


@cache
def plans() -> dict[str, Plan]:
    """Plans by `plan_type`, in the catalogue's order."""
    allowances: dict[str, dict[str, PlanAllowance]] = {}
    for row in _rows("plan_allowances"):
        allowances.setdefault(row["plan_type"], {})[row["metric_type"]] = PlanAllowance(
            metric_type=row["metric_type"],
            included_units=int(row["included_units"]),
            overage_price_cents=int(row["overage_price_cents"]) if row["overage_price_cents"] else None,
            overage_units=int(row["overage_units"]) if row["overage_units"] else None,
        )
    return {
        row["plan_type"]: Plan(
            plan_type=row["plan_type"],
            name=row["name"],
            base_price_cents=int(row["base_price_cents"]),
            currency=row["currency"],
            trial_days=int(row["trial_days"]),
            rank=int(row["rank"]),
            allowances=allowances.get(row["plan_type"], {}),
        )
        for row in _rows("plan_catalogue")
    }


@cache
def thresholds(rule: str) -> dict[str, tuple[Decimal, ...]]:
    """Thresholds of one life-cycle rule: parameter to its values, ascending.

    Raises
    ------
    KeyError
        If the file has no such rule.
    """
    found: dict[str, list[Decimal]] = {}
    for row in _rows("lifecycle_thresholds"):
        if row["rule"] == rule:
            found.setdefault(row["parameter"], []).append(Decimal(row["value"]))
    if not found:
        raise KeyError(f"lifecycle_thresholds.csv has no rule {rule!r}")
    return {name: tuple(sorted(values)) for name, values in found.items()}
