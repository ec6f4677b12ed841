"""What comes from Stripe: one asset a type of object, the webhooks' inbox, and the table that all land in."""

from collections.abc import Iterator

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.keys import ACCOUNTS, NO_KEY
from apex_pipelines.stripe.account import read_account
from apex_pipelines.stripe.catching_up import catch_up
from apex_pipelines.stripe.inbox import count_failed, drain_inbox
from apex_pipelines.stripe.landing import count_objects
from apex_pipelines.stripe.object_types import OBJECT_TYPES

KINDS = {dg.AssetKey(["stripe", kind.title]): kind for kind in OBJECT_TYPES.values()}
WEBHOOKS_TAKEN_IN = dg.AssetKey(["stripe", "webhooks_taken_in"])
NONE_FAILED = "none_rests_as_failed"


# One step for all, since one list of events tells of all their changes.
@dg.multi_asset(
    name="stripe_objects_read",
    specs=[
        dg.AssetSpec(
            key,
            deps=[ACCOUNTS],
            group_name="stripe",
            kinds={"stripe", "clickhouse"},
            description=f"Stripe's {kind.title.replace('_', ' ')}: read whole once, then what changes.",
        )
        for key, kind in KINDS.items()
    ],
    can_subset=True,
)
def stripe_objects_read(context: dg.AssetExecutionContext, stores: Stores) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
    chosen = {KINDS[key].name: key for key in KINDS if key in context.selected_asset_keys}
    if stores.settings.stripe_secret_key is None:
        for key in chosen.values():
            yield dg.MaterializeResult(asset_key=key, metadata=NO_KEY)
        return
    with read_account(stores.settings, stores.clock, query_origin=f"dagster:{context.run.run_id}") as account:
        done = catch_up(
            account, chosen, progress=lambda name, count: context.log.info(f"{name}: {count:,} objects read")
        )
    for problem in done.whole.problems:
        context.log.warning(f"not mirrored: {problem}")
    for name, key in chosen.items():
        yield dg.MaterializeResult(
            asset_key=key,
            metadata={
                "objects_read": done.objects(name),
                "read": "whole" if name in done.whole.objects else "what changed",
                "events_that_no_webhook_brought": done.events.missed,
            },
        )


@dg.asset(
    key=WEBHOOKS_TAKEN_IN,
    group_name="stripe",
    kinds={"stripe", "postgres"},
    description="Stripe's events in the webhook inbox, each taken in by fetching again what it is about.",
    check_specs=[
        dg.AssetCheckSpec(
            NONE_FAILED,
            asset=WEBHOOKS_TAKEN_IN,
            description="`apex stripe inbox` shows those that do, and why.",
        )
    ],
)
def webhooks_taken_in(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    if stores.settings.stripe_secret_key is None:
        return dg.MaterializeResult(
            metadata=NO_KEY, check_results=[dg.AssetCheckResult(check_name=NONE_FAILED, passed=True)]
        )
    with read_account(stores.settings, stores.clock, query_origin=f"dagster:{context.run.run_id}") as account:
        report = drain_inbox(account.engine, account.reader, account.changes)
        failed = count_failed(account.engine)
    return dg.MaterializeResult(
        metadata={
            "done": report.done,
            "ignored": report.ignored,
            "retrying": report.retrying,
            "failed": report.failed,
            "objects_fetched": sum(report.objects.values()),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=NONE_FAILED,
                passed=failed == 0,
                metadata={"failed": failed, "now": report.failures[:20]},
            )
        ],
    )


@dg.asset(
    key=["raw", "stripe_objects"],
    deps=[*KINDS, WEBHOOKS_TAKEN_IN],
    group_name="stripe",
    kinds={"clickhouse", "stripe"},
    description="Objects as Stripe sent them, all types in one table; the fetch that began last counts.",
)
def stripe_objects(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with stores.clickhouse(context) as client:
        counts = count_objects(client)
    lines = [f"| {name} | {count:,} |" for name, count in sorted(counts.items())]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(counts.values()),
            "objects": dg.MetadataValue.md("\n".join(["| type | objects |", "|---|---:|", *lines])),
        }
    )
