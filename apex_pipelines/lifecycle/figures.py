"""Figures of a customer's use, as the rows of a small table in a mail.

Belongs here: choosing and wording figures. Does not belong here: reading them (`marts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from apex_pipelines.lifecycle.marts import Use, in_units
from apex_pipelines.messaging.formatting import money_units, number
from apex_pipelines.platform.catalogue import metrics

Rows = list[list[str]]
_LABELS = {"api_calls": "API calls", "data_transfer": "data transfer"}
_PLATFORMS = {"ios": "iOS"}


def metric_label(metric_type: str) -> str:
    """A metric in the middle of a sentence: `impressions`, `API calls`."""
    return _LABELS.get(metric_type, metric_type.replace("_", " "))


def platform_name(platform: str) -> str:
    """A platform of the SDK as its makers write it: `iOS`, `Unity`."""
    return _PLATFORMS.get(platform, platform.capitalize())


def amount(metric_type: str, quantity: int) -> str:
    """A stored quantity with its unit, as people write it: `1,204,000`, `3.2 GB`, `$12.40`."""
    metric = metrics()[metric_type]
    value = in_units(metric_type, quantity)
    if metric.unit == "USD":
        return money_units(value)
    return number(value) if metric.unit == "count" else f"{number(value)} {metric.unit}"


def recent_use(use: Mapping[str, Use]) -> Rows:
    """One row a metric used in the last 30 days."""
    rows = [[_title(name), amount(name, use[name].recent)] for name in _used(use) if use[name].recent]
    return rows or [["Use so far", "none yet"]]


def month_by_month(use: Mapping[str, Use]) -> Rows:
    """The leading metric of the last 30 days next to the 30 before; no rows unless it fell.

    The mail gives these figures as its reason, which growing or steady use is not.
    """
    name = next(iter(_used(use)), None)
    if name is None or use[name].recent >= use[name].previous:
        return []
    return [
        [f"{_title(name)} in the last 30 days", amount(name, use[name].recent)],
        ["In the 30 days before", amount(name, use[name].previous)],
    ]


def _used(use: Mapping[str, Use]) -> list[str]:
    """Metrics with any use, in the catalogue's order (impressions lead); signals for models are left out."""
    return [
        name
        for name, metric in metrics().items()
        if metric.kind == "usage" and name in use and (use[name].recent or use[name].previous)
    ]


def _title(metric_type: str) -> str:
    label = metric_label(metric_type)
    return label[0].upper() + label[1:]
