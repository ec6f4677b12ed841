"""Raw telemetry: the asset at the root of the graph."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.metering.landing import landed, wait_until_landed

LANDING_TIMEOUT_SECONDS = 300


@dg.asset(key=["raw", "usage_events"], group_name="metering", kinds={"clickhouse"})
def usage_events(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Telemetry as the ingest API accepted it; what counts once is decided further down the graph.

    The loader fills this table all the time; materializing it waits until everything that was acknowledged
    before has landed, so that what depends on it sees a complete picture.
    """
    wait_until_landed(stores.settings.spool_dir, LANDING_TIMEOUT_SECONDS)
    with stores.clickhouse(context) as client:
        found = landed(client)
    newest = found.last_loaded_at.isoformat() if found.last_loaded_at else "never"
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": found.rows,
            "dead_letters": found.dead_letters,
            "last_loaded_at": newest,
        }
    )
