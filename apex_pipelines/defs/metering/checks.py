"""Checks on raw telemetry: what was acknowledged is there, once."""

from datetime import timedelta

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.metering.landing import landed, repeated_rows
from apex_pipelines.platform.clock import SystemClock

USAGE_EVENTS = dg.AssetKey(["raw", "usage_events"])


@dg.asset_check(asset=USAGE_EVENTS, blocking=True)
def no_row_landed_twice(context: dg.AssetCheckExecutionContext, stores: Stores) -> dg.AssetCheckResult:
    """No spool row was loaded twice in the last day, so the loader's proof by count holds."""
    # Load times are the server's bookkeeping, so the machine's clock is the one to compare with.
    since = SystemClock().now() - timedelta(days=1)
    with stores.clickhouse(context) as client:
        repeated = repeated_rows(client, since)
    return dg.AssetCheckResult(passed=repeated == 0, metadata={"repeated_rows": repeated})


@dg.asset_check(asset=USAGE_EVENTS)
def nothing_in_dead_letters(context: dg.AssetCheckExecutionContext, stores: Stores) -> dg.AssetCheckResult:
    """Every acknowledged event could be loaded."""
    with stores.clickhouse(context) as client:
        dead = landed(client).dead_letters
    return dg.AssetCheckResult(
        passed=dead == 0, metadata={"dead_letters": dead}, severity=dg.AssetCheckSeverity.WARN
    )
