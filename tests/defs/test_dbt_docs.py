"""The page of every model: what it names, and where it is left."""

import json
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.warehouse.assets import build_docs, dbt_resource
from apex_pipelines.platform.dbt import ensure_manifest
from apex_pipelines.settings import Settings
from apex_pipelines.stack import dagster_environment


def test_the_page_names_every_model_and_the_columns_that_are_on_the_server(
    settings: Settings, warehouse: Client, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in dagster_environment(settings).items():
        monkeypatch.setenv(name, value)
    manifest = json.loads(ensure_manifest(Settings()).read_bytes())
    models = {node["name"] for node in manifest["nodes"].values() if node["resource_type"] == "model"}
    warehouse.command("alter table raw.payments add column if not exists only_on_the_server UInt8")
    try:
        result = dg.materialize([build_docs([])], resources={"stores": Stores(), "dbt": dbt_resource()})
    finally:
        warehouse.command("alter table raw.payments drop column only_on_the_server")

    event = result.get_asset_materialization_events()[0]
    page = Path(str(event.materialization.metadata["page"].value))
    assert page.is_relative_to(settings.home_path)
    text = page.read_text()
    assert models
    assert not {name for name in models if f'"{name}"' not in text}
    assert '"only_on_the_server"' in text
