"""Suites over what comes from outside: a broken one stops what depends on that source."""

from collections.abc import Iterator

import dagster as dg

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.warehouse.stopping import do_not_repeat
from apex_pipelines.quality.sources import SOURCES
from apex_pipelines.quality.validation import BrokenRule, broken_rules

SUITE = "suite_holds"
CHECKED = {dg.AssetKey(["raw", source.table]): source for source in SOURCES}


# One step for all, because what the suites are written in takes seconds to import.
@dg.multi_asset_check(
    name="suites",
    specs=[
        dg.AssetCheckSpec(
            SUITE, asset=key, blocking=True, description="The newest rows are like those that belong there."
        )
        for key in CHECKED
    ],
    can_subset=True,
)
def suites(context: dg.AssetCheckExecutionContext, stores: Stores) -> Iterator[dg.AssetCheckResult]:
    chosen = {check.asset_key for check in context.selected_asset_check_keys}
    with stores.clickhouse(context) as client:
        for key in sorted(chosen):
            source = CHECKED[key]
            rows = source.newest_rows(client, stores.settings.quality_rows)
            broken = broken_rules(rows, source.rules(stores.settings, stores.now), source.named_by)
            if broken:
                do_not_repeat(context)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=SUITE,
                passed=not broken,
                description="; ".join(f"{rule.rule}: {rule.rows} rows" for rule in broken) or None,
                metadata={"rows_checked": rows.height, "broken_rules": _table(broken)},
            )


def _table(broken: list[BrokenRule]) -> dg.MarkdownMetadataValue:
    lines = [
        f"| {rule.rule} | {rule.rows} | {'<br>'.join(map(_escaped, rule.examples))} |" for rule in broken
    ]
    return dg.MetadataValue.md("\n".join(["| rule | rows | such as |", "|---|---:|---|", *lines]))


def _escaped(text: str) -> str:
    """What came from outside, so that it can't break the table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(asset_checks=[suites])
