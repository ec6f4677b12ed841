"""Rules that every model keeps, read from dbt's manifest, and what dbt says when a run lacks its date."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apex_pipelines.settings import PROJECT_ROOT, Settings
from tests.warehouse_models.conftest import Models

PLATFORM = PROJECT_ROOT / "apex_pipelines"
API = PROJECT_ROOT / "ingest_api"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What dbt parses without any variable and without a server."""
    work_dir: Path = tmp_path_factory.mktemp("parse")
    settings = Settings(home=work_dir)
    command = Models(settings, None, work_dir).command("parse", as_of=None)  # type: ignore[arg-type]
    environment = {"DBT_PROFILES_DIR": str(settings.dbt_project_dir), "PATH": "", "HOME": str(work_dir)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    parsed: dict[str, Any] = json.loads((work_dir / "target" / "manifest.json").read_text())
    return parsed


def _models(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]


def test_incremental_models_declare_strategy_and_key(manifest: dict[str, Any]) -> None:
    # Without a key the adapter appends in silence, whatever strategy is named.
    for model in _models(manifest):
        config = model["config"]
        if config["materialized"] == "incremental":
            assert config["incremental_strategy"], model["name"]
            if config["incremental_strategy"] == "append":
                assert config["meta"].get("append_because"), f"{model['name']} appends without a reason"
                assert not config["unique_key"], model["name"]
            else:
                assert config["unique_key"], f"{model['name']} would append in silence"
            assert any("end_leftover_statements" in hook["sql"] for hook in config["pre-hook"]), model["name"]


def test_every_model_is_described_owned_and_checked(manifest: dict[str, Any]) -> None:
    tested = {
        parent
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test"
        for parent in node["depends_on"]["nodes"]
    }
    for model in _models(manifest):
        name = model["name"]
        assert model["description"], name
        assert model["columns"], name
        assert all(column["description"] for column in model["columns"].values()), name
        assert model["config"]["meta"]["dagster"]["group"] == model["path"].split("/")[1], name
        assert model["config"]["meta"]["dagster"]["owners"], name
        if model["config"]["materialized"] != "view":
            assert model["unique_id"] in tested, f"{name} has no test of its key"
        if model["path"].startswith("marts/"):
            assert model["config"]["contract"]["enforced"], name
            assert all(column["data_type"] for column in model["columns"].values()), name


def test_a_test_that_spans_models_stops_all_that_is_behind_the_model_it_is_shown_on(
    manifest: dict[str, Any],
) -> None:
    # dbt skips only what depends on all of a test's models. Where a model behind the tested one does not, the
    # tested one names the others in a comment, `depends_on`, so that they stand before it.
    tests = [node for node in manifest["nodes"].values() if node["resource_type"] == "test"]
    for test in tests:
        parents = set(test["depends_on"]["nodes"])
        if len(parents) == 1 or test["config"]["severity"].lower() == "warn":
            continue
        meta = test["config"].get("meta") or {}
        shown_on = test.get("attached_node") or f"model.apex.{meta['dagster']['ref']['name']}"
        for model in _reach(manifest["child_map"], shown_on):
            missed = parents - _reach(manifest["parent_map"], model)
            assert not missed, f"{test['name']} does not stop {model}, which does not depend on {missed}"


def _reach(edges: dict[str, list[str]], start: str) -> set[str]:
    """Models, seeds and sources that `edges` lead to from `start`."""
    found: set[str] = set()
    to_visit = [start]
    while to_visit:
        new = {n for n in edges[to_visit.pop()] if n.startswith(("model.", "seed.", "source."))} - found
        found |= new
        to_visit += new
    return found


def test_what_the_platform_reads_stands_in_an_exposure(manifest: dict[str, Any]) -> None:
    relations = {f"{node['schema']}.{node['name']}": node["unique_id"] for node in _models(manifest)}
    exposed = {
        node for exposure in manifest["exposures"].values() for node in exposure["depends_on"]["nodes"]
    }
    # The demo's summary is read by who runs it, and breaks in a test.
    files = {*PLATFORM.rglob("*.py"), *API.rglob("*.py")} - {PLATFORM / "demo.py"}
    read = {
        name: path.name
        for path in files
        for name in re.findall(r"\b(?:from|join) (\w+\.\w+)", path.read_text())
        if name in relations
    }
    assert "marts.usage_daily" in read, "the pattern finds nothing any more"
    for name, file in read.items():
        assert relations[name] in exposed, f"{file} reads {name}, which no exposure names"


def test_engines_are_chosen_in_one_place(manifest: dict[str, Any]) -> None:
    # dbt_project.yml, which knows the replicated form that a cluster needs.
    for node in manifest["nodes"].values():
        if node["resource_type"] in ("model", "seed"):
            assert node["config"]["engine"] == "MergeTree()", node["name"]


def test_models_ask_no_clock(manifest: dict[str, Any]) -> None:
    for model in _models(manifest):
        code = (
            model["raw_code"].replace("now64(6, 'UTC')", "")
            if model["name"] == "int_usage_events"
            else model["raw_code"]
        )
        assert not any(word in code for word in ("now(", "now64(", "today(", "yesterday(")), model["name"]


def test_a_run_without_its_date_says_what_to_pass(models: Models) -> None:
    done = subprocess.run(
        models.command("compile", "--select", "int_customer_usage", as_of=None),
        env=models.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "as_of_date is missing" in done.stdout
