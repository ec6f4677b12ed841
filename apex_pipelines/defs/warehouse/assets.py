"""dbt's models and seeds as assets, their tests as checks."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, dbt_assets

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.warehouse import stopping
from apex_pipelines.platform.clickhouse import row_counts
from apex_pipelines.platform.dbt import (
    dbt_environment,
    dbt_executable,
    dbt_variables,
    manifest_path,
)
from apex_pipelines.settings import Settings

_SETTINGS = Settings()


class ApexDbtTranslator(DagsterDbtTranslator):
    """Keys are `[schema, name]`, so that an asset is called as its table is; the folder names the group."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        meta = dbt_resource_props.get("config", {}).get("meta", {}).get("dagster", {}).get("asset_key")
        if meta:
            return dg.AssetKey(meta)
        return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        if dbt_resource_props["resource_type"] == "seed":
            return "catalogue"
        folders = dbt_resource_props["fqn"][1:-1]
        return str(folders[1]) if len(folders) > 1 else "warehouse"


_PARSED = "partial_parse.msgpack"  # dbt's name

# Models that read the churn scores, which Python writes from other models. They are a definition of their
# own: left to itself, the framework would cut one definition into a dbt call for each level of the graph.
AFTER_SCORES = "stg_churn_scores+"
# Models that read what became of the mails, whose copies are taken after the day's mails.
AFTER_MAILS = "source:raw.events+ source:raw.email_log+"
# Models that read what Stripe was told of use, which is sent from what other models counted. Built with those
# after the mails: both stand at the end of the graph, and a dbt call of their own would cost seconds.
AFTER_STRIPE = (
    "source:raw.stripe_meter_ledger+ source:raw.stripe_meter_summaries+ source:raw.stripe_invoice_ledger+"
)

# Incremental models expect one dbt run at a time: dagster.yaml lets one run of this pool go at once.
WAREHOUSE_POOL = "warehouse"


def dbt_arguments(settings: Settings, as_of: date) -> list[str]:
    """Arguments of the one dbt command that a step makes.

    Unit tests check the code, not the data, so they run with the test suite and not every day. A test that
    spans several models runs in the step that builds the last of them.
    """
    variables = json.dumps(dbt_variables(settings, as_of))
    options = ["--exclude-resource-type", "unit_test", "--indirect-selection", "buildable"]
    return ["build", *options, "--vars", variables]


def models_folder(settings: Settings) -> Path:
    """Where dbt works. One folder that stays, so that each step finds what the one before has parsed."""
    return settings.home_path / "dbt" / "models"


def build_models(name: str, *, select: str, exclude: str | None = None) -> dg.AssetsDefinition:
    """Assets of the models in a dbt selection."""

    translator = ApexDbtTranslator(DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True))

    @dbt_assets(
        name=name,
        manifest=manifest_path(_SETTINGS),
        select=select,
        exclude=exclude,
        dagster_dbt_translator=translator,
        pool=WAREHOUSE_POOL,
    )
    def models(context: dg.AssetExecutionContext, dbt: DbtCliResource, stores: Stores) -> Iterator[Any]:
        target = models_folder(stores.settings)
        target.mkdir(parents=True, exist_ok=True)
        manifest = json.loads(manifest_path(stores.settings).read_bytes())
        broken = stopping.broken_assets(context.instance, context.run.run_id)
        arguments = dbt_arguments(stores.settings, stores.as_of_date)
        arguments += stopping.without_descendants(broken, manifest, translator)
        with _environment(dbt_environment(stores.now)):
            running = dbt.cli(arguments, context=context, target_path=target)
        events = running.stream()

        def counted(outputs: list[dg.Output[Any]]) -> dict[str, dict[str, int]]:
            tables = _tables(outputs, manifest)
            with stores.clickhouse(context) as client:
                counts = row_counts(client, tables.values())
            return {name: {"dagster/row_count": counts[table]} for name, table in tables.items()}

        yield from stopping.held_until_checked(
            events, context.asset_key_for_output, counted, partial(stopping.do_not_repeat, context)
        )

    return models


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """What a process that is started inside finds beside our own environment."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _tables(outputs: list[dg.Output[Any]], manifest: Mapping[str, Any]) -> dict[str, str]:
    """Output name to table, of what is stored; counting a view's rows would cost what its query costs."""
    nodes = [
        (output.output_name, manifest["nodes"][output.metadata["unique_id"].value]) for output in outputs
    ]
    return {name: node["relation_name"] for name, node in nodes if node["config"]["materialized"] != "view"}


def dbt_resource() -> DbtCliResource:
    """dbt on the platform's own project, with its own profile."""
    project_dir = str(_SETTINGS.dbt_project_dir)
    return DbtCliResource(
        project_dir=project_dir, profiles_dir=project_dir, dbt_executable=str(dbt_executable())
    )


def build_docs(models: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    """The asset of dbt's own pages, made after `models`, so that they show the columns and sizes of today."""

    @dg.asset(
        key=["warehouse", "dbt_docs"],
        deps=[key for definition in models for key in sorted(definition.keys)],
        group_name="warehouse",
        kinds={"dbt"},
        pool=WAREHOUSE_POOL,
    )
    def dbt_docs(dbt: DbtCliResource, stores: Stores) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """Every model with its columns, tests, SQL and lineage, in one page that needs no server."""
        target = stores.settings.home_path / "dbt" / "docs"
        target.mkdir(parents=True, exist_ok=True)
        variables = json.dumps(dbt_variables(stores.settings, stores.as_of_date))
        # Compiled SQL can be read where it ran; compiling all of it again, or parsing, would cost seconds.
        shutil.copyfile(manifest_path(stores.settings), target / "manifest.json")
        parsed = models_folder(stores.settings) / _PARSED
        if parsed.exists():
            shutil.copyfile(parsed, target / parsed.name)
        command = ["docs", "generate", "--static", "--no-compile", "--vars", variables]
        dbt.cli(command, target_path=target).wait()
        page = target / "static_index.html"
        return dg.MaterializeResult(
            metadata={"page": dg.MetadataValue.path(str(page)), "bytes": page.stat().st_size}
        )

    return dbt_docs


@dg.definitions
def defs() -> dg.Definitions:
    models = [
        build_models(
            "warehouse_models", select="fqn:*", exclude=f"{AFTER_SCORES} {AFTER_MAILS} {AFTER_STRIPE}"
        ),
        build_models("models_after_scores", select=AFTER_SCORES, exclude=f"{AFTER_MAILS} {AFTER_STRIPE}"),
        build_models("models_after_mails_and_stripe", select=f"{AFTER_MAILS} {AFTER_STRIPE}"),
    ]
    return dg.Definitions(
        assets=[*models, build_docs(models)],
        resources={"dbt": dbt_resource()},
        executor=stopping.EXECUTOR,
    )
