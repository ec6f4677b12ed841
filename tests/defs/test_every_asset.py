"""Rules that every asset and every check keeps, read from the assembled definitions."""

from __future__ import annotations

import dagster as dg
import pytest

from apex_pipelines.definitions import defs

DBT = "dbt"


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs()


def test_every_asset_is_owned_described_grouped_and_has_a_freshness_policy(
    definitions: dg.Definitions,
) -> None:
    specs = definitions.resolve_all_asset_specs()
    assert specs
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.owners, name
        assert spec.description, name
        assert spec.group_name not in (None, "default"), name
        assert spec.freshness_policy is not None, name


def test_what_is_read_past_a_blocking_check_knows_how_to_leave_it_out(definitions: dg.Definitions) -> None:
    """Steps wait for assets, not for the success of checks: only a dbt step leaves out what a check broke."""
    graph = definitions.resolve_asset_graph()
    kinds = {spec.key: spec.kinds for spec in definitions.resolve_all_asset_specs()}
    for key in graph.asset_check_keys:
        check = graph.get(key)
        if check.blocking and DBT not in kinds[key.asset_key]:
            for child in graph.get(key.asset_key).child_keys:
                assert DBT in kinds[child], f"{child.to_user_string()} would run although {key} failed"
