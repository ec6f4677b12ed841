"""Billing in the operational store, before it is copied to the warehouse."""

import dagster as dg

from apex_pipelines.billing.store import roll_periods
from apex_pipelines.defs.platform.resources import Stores


@dg.asset(key=["billing", "billing_periods"], group_name="billing", kinds={"postgres"})
def billing_periods(stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Periods of open subscriptions, moved to the one that holds today; ended trials become active."""
    with stores.postgres() as engine, engine.begin() as connection:
        moved = roll_periods(connection, stores.now)
    return dg.MaterializeResult(metadata={"subscriptions_moved": moved})
