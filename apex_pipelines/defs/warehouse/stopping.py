"""A broken check stops what depends on it, and nothing else.

Belongs here: which models a dbt call leaves out, and what it tells Dagster of those that it built.

How a check says that it stops: a dbt test by its severity (`error`, the default; `warn` stops nothing), one
of a raw asset by `@dg.asset_check(asset=..., blocking=True)` and a result whose severity is ERROR, the
default. Nothing else is needed. Why it works so: docs/decisions/0015.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator
from dagster_dbt.errors import DagsterDbtCliRuntimeError

# dbt's models are many assets of one step. Steps wait for the assets that they read rather than for the whole
# success of the step that makes them, so a failed check of one model does not stop those who read another.
# Steps of a run share one process: starting one costs seconds.
EXECUTOR = dg.in_process_executor.configured(
    {"step_dependency_config": {"require_upstream_step_success": False}}, name="in_process"
)


# Dagster reads it when a run has failed.
RETRY_TAG = "dagster/retry_on_asset_or_op_failure"


def do_not_repeat(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> None:
    """Let this run fail for good: data that broke a check are as broken when they are read again."""
    context.instance.add_run_tags(context.run.run_id, {RETRY_TAG: "false"})


def broken_assets(instance: dg.DagsterInstance, run_id: str) -> set[dg.AssetKey]:
    """Assets of which a blocking check failed in this run."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    evaluations = [event.asset_check_evaluation_data for event in events]
    return {found.asset_key for found in evaluations if found.blocking and is_broken(found)}


def is_broken(check: dg.AssetCheckResult | dg.AssetCheckEvaluation) -> bool:
    """Whether it failed, and not with a mere warning."""
    return not check.passed and check.severity == dg.AssetCheckSeverity.ERROR


def without_descendants(
    broken: set[dg.AssetKey], manifest: Mapping[str, Any], translator: DagsterDbtTranslator
) -> list[str]:
    """dbt's arguments that leave out whatever is built from the `broken` sources."""
    sources = [
        f"source:{source['source_name']}.{source['name']}+"
        for source in manifest["sources"].values()
        if translator.get_asset_key(source) in broken
    ]
    return ["--exclude", " ".join(sorted(sources))] if sources else []


def held_until_checked(
    events: Iterable[Any],
    asset_of: Callable[[str], dg.AssetKey],
    details: Callable[[list[dg.Output[Any]]], Mapping[str, Mapping[str, Any]]],
    when_broken: Callable[[], None],
) -> Iterator[Any]:
    """Events of a dbt call, in which a model that failed a check is built but given to nobody.

    Parameters
    ----------
    events : iterable
        What dagster-dbt makes of dbt's log; raising at its end is held back until all has been told.
    asset_of : callable
        The asset of an output's name.
    details : callable
        From the outputs to more metadata for each, by the output's name.
    when_broken : callable
        Called at each check that failed.
    """
    outputs: list[dg.Output[Any]] = []
    broken: set[dg.AssetKey] = set()
    failure: DagsterDbtCliRuntimeError | None = None
    try:
        for event in events:
            if isinstance(event, dg.Output):
                outputs.append(event)
                continue
            if isinstance(event, dg.AssetCheckResult) and is_broken(event) and event.asset_key:
                broken.add(event.asset_key)
                when_broken()
            yield event
    except DagsterDbtCliRuntimeError as error:
        failure = error
    more = details(outputs)
    for output in outputs:
        asset, metadata = (
            asset_of(output.output_name),
            {**output.metadata, **more.get(output.output_name, {})},
        )
        if asset in broken:
            yield dg.AssetMaterialization(asset, metadata=metadata)
        else:
            yield output.with_metadata(metadata)
    if failure is not None:
        raise failure
