"""Life-cycle rules as assets: each reads a mart and queues the mails that it calls for."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.lifecycle import triggers
from apex_pipelines.lifecycle.triggers import Trigger, TriggerReport

# Asset name to (rule, the marts it reads, what a reader should know).
TRIGGERS: dict[str, tuple[Trigger, list[str], str]] = {
    "onboarding_steps": (
        triggers.onboarding_triggers,
        ["onboarding", "usage_daily"],
        "Steps that customers took for the first time, welcome and check-in mails, ends of trials.",
    ),
    "at_risk_alerts": (
        triggers.at_risk_triggers,
        ["at_risk_customers", "usage_daily", "usage_by_period"],
        "Customers whose use fell, who never integrated, or who near their limit, and their mails.",
    ),
    "segment_entries": (
        triggers.segment_triggers,
        ["segment_memberships", "usage_daily"],
        "Customers who entered a segment, and their mails; staying in one triggers nothing.",
    ),
    "usage_alerts": (
        triggers.usage_alert_triggers,
        ["usage_by_period"],
        "Thresholds of included quantities that were reached, once a billing period.",
    ),
    "daily_digest": (
        triggers.daily_digest,
        ["daily_digest", "at_risk_customers", "segment_memberships"],
        "The operator's morning mail: sign-ups, money, use, risks and mails of yesterday.",
    ),
}


def build_trigger(name: str, rule: Trigger, marts: list[str], description: str) -> dg.AssetsDefinition:
    """The asset that applies one rule and records what it queued."""

    @dg.asset(
        key=["lifecycle", name],
        # Triggers read subscriptions too, whose periods and trials must have been moved on before.
        deps=[*(dg.AssetKey(["marts", mart]) for mart in marts), dg.AssetKey(["billing", "billing_periods"])],
        group_name="lifecycle",
        description=description,
        kinds={"postgres", "python"},
    )
    def trigger(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with stores.postgres() as engine, stores.clickhouse(context) as client:
            report: TriggerReport = rule(client, engine, stores.as_of_date, stores.clock)
        return dg.MaterializeResult(metadata=report.as_metadata())

    return trigger


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[build_trigger(name, *parts) for name, parts in TRIGGERS.items()])
