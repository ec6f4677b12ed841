"""Our customers at Stripe, and what their use costs on Stripe's invoices."""

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.keys import ACCOUNTS, BILLING_PERIODS, INVOICE_ITEMS, NO_KEY, USAGE_SYNC
from apex_pipelines.stripe.accounts import Pushed, push
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.invoice_items import PostedItem, post_items

NOBODY_IS_REFUSED = "nobody_is_refused"
EVERYTHING_IS_POSTED = "everything_is_posted"
_SHOWN = 50


@dg.asset(
    key=ACCOUNTS,
    deps=[BILLING_PERIODS],
    group_name="stripe",
    kinds={"stripe", "postgres"},
    check_specs=[
        dg.AssetCheckSpec(
            NOBODY_IS_REFUSED, asset=ACCOUNTS, description="Stripe took each customer and subscription."
        )
    ],
)
def accounts(stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Customers and subscriptions at Stripe, in line with our own: new ones, plan changes, cancellations."""
    settings = stores.settings
    if settings.stripe_secret_key is None:
        return dg.MaterializeResult(metadata=NO_KEY, check_results=[_nobody_refused([])])
    client, livemode = connect(settings), is_live(settings)
    with stores.postgres() as engine:
        with engine.begin() as connection:
            bootstrap(client, connection, stores.now, livemode=livemode)
        done = push(client, engine, stores.now, livemode=livemode)
    outcomes = [each.outcome for each in done]
    return dg.MaterializeResult(
        metadata={outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        check_results=[_nobody_refused(done)],
    )


@dg.asset(
    key=INVOICE_ITEMS,
    # Use first, so that the same invoice has the quantities and what they cost.
    deps=[dg.AssetKey(["intermediate", "int_stripe_lines"]), USAGE_SYNC],
    group_name="stripe",
    kinds={"stripe", "postgres"},
    check_specs=[
        dg.AssetCheckSpec(
            EVERYTHING_IS_POSTED, asset=INVOICE_ITEMS, description="Stripe took each item of the ledger."
        )
    ],
)
def invoice_items(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Ledger of overage, fees and adjustments that were put onto Stripe's invoices."""
    settings = stores.settings
    if settings.stripe_secret_key is None:
        return dg.MaterializeResult(metadata=NO_KEY, check_results=[_everything_posted([])])
    with stores.postgres() as engine, stores.clickhouse(context) as warehouse:
        done = post_items(connect(settings), engine, warehouse, stores.now, livemode=is_live(settings))
    posted = [item for item in done if item.error is None]
    by_currency = {
        currency: sum(item.amount_cents for item in posted if item.currency == currency)
        for currency in sorted({item.currency for item in posted})
    }
    return dg.MaterializeResult(
        metadata={
            "items_posted": len(posted),
            "on_a_draft": sum(item.invoice_id is not None for item in posted),
            "minor_units_by_currency": dg.MetadataValue.json(by_currency),
        },
        check_results=[_everything_posted(done)],
    )


def _nobody_refused(done: list[Pushed]) -> dg.AssetCheckResult:
    refused = [f"{each.customer_id}: {each.error}" for each in done if each.error]
    return dg.AssetCheckResult(
        check_name=NOBODY_IS_REFUSED,
        passed=not refused,
        metadata={"refused": dg.MetadataValue.json(refused[:_SHOWN])},
    )


def _everything_posted(done: list[PostedItem]) -> dg.AssetCheckResult:
    left = [f"{item.customer_id}, {item.line_type}: {item.error}" for item in done if item.error]
    return dg.AssetCheckResult(
        check_name=EVERYTHING_IS_POSTED,
        passed=not left,
        metadata={"pending": dg.MetadataValue.json(left[:_SHOWN])},
    )
