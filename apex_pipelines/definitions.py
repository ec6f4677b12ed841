"""Assembles the one `Definitions` of the platform and applies the policy that cuts across it. No logic."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg

OWNER = "team:platform"

# The chain runs daily; two hours of grace keep a slow run from being an alarm.
DAILY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26))


def _with_policy(spec: dg.AssetSpec) -> dg.AssetSpec:
    return spec.replace_attributes(
        owners=list(spec.owners) or [OWNER],
        freshness_policy=spec.freshness_policy or DAILY_FRESHNESS,
    )


@dg.definitions
def defs() -> dg.Definitions:
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return found.map_asset_specs(func=_with_policy)
