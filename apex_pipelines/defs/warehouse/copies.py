"""Copies of the operational tables in the warehouse, one asset a table."""

from dataclasses import dataclass

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.platform.table_copy import TableCopy, copy_table

BILLING_PERIODS = dg.AssetKey(["billing", "billing_periods"])
WEBHOOKS_TAKEN_IN = dg.AssetKey(["stripe", "webhooks_taken_in"])
STRIPE_MIRRORED = (
    dg.AssetKey(["stripe", "subscriptions"]),
    dg.AssetKey(["stripe", "invoices"]),
    WEBHOOKS_TAKEN_IN,
)
EMAILS_SENT = dg.AssetKey(["messaging", "emails_sent"])
INVOICE_ITEMS = dg.AssetKey(["stripe", "invoice_items"])
METER_SUMMARIES = dg.AssetKey(["raw", "stripe_meter_summaries"])
DRIFT = "no_column_is_missing"


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """One operational table that is copied.

    Attributes
    ----------
    after : tuple of asset keys
        What must be right in PostgreSQL before.
    left_out : tuple of str
        Columns that the warehouse is not meant to have; another one that it lacks is reported.
    """

    name: str
    group: str
    description: str
    after: tuple[dg.AssetKey, ...] = ()
    left_out: tuple[str, ...] = ()


COPIES = (
    CopiedTable(
        "customers",
        "customers",
        "Who our customers are, as the operational store knows them now.",
        # What the mail queue asks when it sends, and nobody counts by.
        left_out=("time_zone", "marketing_consent"),
    ),
    CopiedTable(
        "subscriptions",
        "billing",
        "Every subscription ever opened, with its plan, status, period and end.",
        after=(BILLING_PERIODS, *STRIPE_MIRRORED),
        # Of the row; when which terms held is what subscription_changes say.
        left_out=("updated_at",),
    ),
    CopiedTable(
        "subscription_changes",
        "billing",
        "The terms of each subscription from an instant on, one row a change.",
        after=(BILLING_PERIODS, *STRIPE_MIRRORED),
    ),
    CopiedTable(
        "payments", "billing", "Every attempt to collect an invoice, with its outcome.", after=STRIPE_MIRRORED
    ),
    CopiedTable(
        "events",
        "messaging",
        "What the mail queue holds and what became of it, without the mails' contents.",
        after=(EMAILS_SENT,),
        # `data` may hold a new API key or a link that signs in; `not_before` is the queue's own retry time.
        left_out=("data", "not_before"),
    ),
    CopiedTable(
        "email_log", "messaging", "Every mail that a provider took, one row a mail.", after=(EMAILS_SENT,)
    ),
    CopiedTable(
        "stripe_meter_ledger",
        "stripe",
        "What Stripe was told of use, one row a meter event, and what became of it.",
        after=(METER_SUMMARIES,),
        # The day of slot_start.
        left_out=("usage_date",),
    ),
    CopiedTable(
        "stripe_invoice_ledger",
        "stripe",
        "What was put onto Stripe's invoices beside its own lines, one row an item.",
        after=(METER_SUMMARIES, INVOICE_ITEMS),
    ),
    CopiedTable(
        "webhook_inbox",
        "messaging",
        "Every webhook of Stripe and Resend, as it was signed.",
        after=(WEBHOOKS_TAKEN_IN,),
        # The queue's own: what is of use is where the webhook was taken in.
        left_out=("attempts", "not_before", "outcome", "error_message"),
    ),
)


def build_copy(table: CopiedTable) -> dg.AssetsDefinition:
    """The asset that brings what changed in one operational table."""
    key = dg.AssetKey(["raw", table.name])

    @dg.asset(
        key=key,
        deps=table.after,
        group_name=table.group,
        description=table.description,
        kinds={"postgres", "clickhouse"},
        check_specs=[
            dg.AssetCheckSpec(
                DRIFT, asset=key, description="The copy has every column, but those left out on purpose."
            )
        ],
    )
    def copy(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with stores.postgres() as engine, stores.clickhouse(context) as client:
            done = copy_table(engine, client, table.name, stores.now, left_out=table.left_out)
        return dg.MaterializeResult(metadata=_metadata(done), check_results=[_drift(done)])

    return copy


def _metadata(done: TableCopy) -> dict[str, int | str]:
    return {
        "dagster/row_count": done.rows,
        "rows_copied": done.copied,
        "rows_deleted": done.deleted,
        "copied": "what changed" if done.whole_because is None else f"the whole, since {done.whole_because}",
    }


def _drift(done: TableCopy) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=DRIFT,
        passed=not done.missing_columns,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"missing_columns": ", ".join(done.missing_columns) or "none"},
    )


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[build_copy(table) for table in COPIES])
