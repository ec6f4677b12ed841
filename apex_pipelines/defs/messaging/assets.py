"""The end of the chain: mails that were sent, and their log in the warehouse."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.messaging.queue import create_provider, drain
from apex_pipelines.platform.snapshot import copy_table

TRIGGER_ASSETS = (
    "onboarding_steps",
    "at_risk_alerts",
    "segment_entries",
    "usage_alerts",
    "churn_interventions",
    "daily_digest",
)


@dg.asset(
    key=["messaging", "emails_sent"],
    deps=[dg.AssetKey(["lifecycle", name]) for name in TRIGGER_ASSETS],
    group_name="messaging",
    kinds={"postgres", "email"},
)
def emails_sent(stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Mails handed to the provider; each cause is mailed once, and what is not sent says why."""
    with stores.postgres() as engine:
        report = drain(engine, create_provider(stores.settings), stores.clock, settings=stores.settings)
    counts = ("sent", "skipped", "waiting", "retrying", "failed")
    totals = {name: getattr(report, name).total() for name in counts}
    lines = [f"| {kind} | {count} |" for kind, count in report.sent.most_common()]
    return dg.MaterializeResult(
        metadata={
            **totals,
            "sent_by_type": dg.MetadataValue.md("\n".join(["| mail | sent |", "|---|---:|", *lines])),
            "skipped_by_reason": dg.MetadataValue.json(dict(report.skipped)),
            "outbox": dg.MetadataValue.path(str(stores.settings.outbox_dir / "index.html")),
        }
    )


@dg.asset(
    key=["raw", "email_log"], deps=[emails_sent], group_name="messaging", kinds={"postgres", "clickhouse"}
)
def email_log(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every mail ever handed to a provider, copied to the warehouse."""
    with stores.postgres() as engine, stores.clickhouse(context) as client:
        rows = copy_table(engine, client, "email_log", stores.now)
    return dg.MaterializeResult(metadata={"dagster/row_count": rows})
