"""The end of the chain: mails that were sent."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.messaging.queue import create_provider, drain

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
