"""The clients that the platform itself uses, doing what it does with them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.warehouse.conftest import PASSWORD, Front


@pytest.fixture
def client(front: Front) -> Iterator[Client]:
    client = front.client()
    yield client
    client.close()


def test_frames_scalars_and_empty_results(client: Client) -> None:
    assert client.query_df("select number, toString(number) as s from numbers(3)")["s"].tolist() == [
        "0",
        "1",
        "2",
    ]
    assert client.query("select number from numbers(0)").result_rows == []
    assert client.query("show databases").column_names == ("name",)
    assert client.command("select count() from system.one") == 1
    assert client.query("select {a:Array(String)}", parameters={"a": ["x'", "y"]}).result_rows == [
        (["x'", "y"],)
    ]
    arrow = client.query_arrow("select number from numbers(200000)")
    assert arrow.num_rows == 200_000


def test_errors_are_the_drivers_own(client: Client) -> None:
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("select * from nosuch")


def test_tables_are_exchanged_whole(client: Client) -> None:
    for name in ("left_t", "right_t"):
        client.command(f"create table {name} (s String) engine = MergeTree order by s")
        client.insert(name, [[name]], column_names=["s"])
    client.command("exchange tables left_t and right_t")
    assert client.query("select s from left_t").result_rows == [("right_t",)]


def test_rows_are_deleted_lightly_and_by_mutation(client: Client) -> None:
    client.command("create table deleted (a UInt64) engine = MergeTree order by a")
    client.insert("deleted", [[n] for n in range(10)], column_names=["a"])
    client.command("delete from deleted where a < 3")
    assert client.command("select count() from deleted") == 7
    client.command("alter table deleted delete where a < 5", settings={"mutations_sync": 1})
    assert client.command("select count() from deleted") == 5


def test_a_materialized_view_sees_streamed_inserts(client: Client) -> None:
    client.command("create table source (a UInt64) engine = MergeTree order by a")
    client.command(
        "create materialized view target engine = MergeTree order by b as select a * 2 as b from source"
    )
    client.insert("source", [[n] for n in range(100_000)], column_names=["a"])
    assert client.command("select count() from target") == 100_000


def test_databases_dictionaries_projections_and_ttl(client: Client) -> None:
    client.command("create database if not exists side")
    client.command(
        "create table side.t (a UInt64, d DateTime, projection p (select sum(a))) "
        "engine = MergeTree order by a ttl d + interval 1 day"
    )
    client.command(
        "create dictionary side.d (a UInt64, d DateTime) primary key a "
        "source(clickhouse(table 't' db 'side')) layout(flat()) lifetime(0)"
    )
    client.insert(
        "side.t", [[1, 4_000_000_000]], column_names=["a", "d"], column_type_names=["UInt64", "DateTime"]
    )
    assert client.command("select toUnixTimestamp(dictGet('side.d', 'd', 1))") == 4_000_000_000
    client.command("drop database side")


def test_dbt_builds_a_view_and_an_incremental_model(front: Front, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "dbt_project.yml").write_text(
        "{name: tiny, version: '1.0', profile: tiny, model-paths: [models]}"
    )
    (tmp_path / "profiles.yml").write_text(
        "tiny: {target: dev, outputs: {dev: {type: clickhouse, schema: tiny, host: 127.0.0.1, user: default, "
        f'port: {front.port}, password: "{PASSWORD}", use_lw_deletes: true, threads: 2}}}}}}'
    )
    (models / "one.sql").write_text(
        "select number as id, '{{ var(\"round\") }}' as round from numbers({{ var('rows') }})"
    )
    (models / "two.sql").write_text(
        "{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='id', "
        "engine='MergeTree()', order_by='id') }} select id, round from {{ ref('one') }}"
    )
    (models / "models.yml").write_text(
        "{version: 2, models: [{name: two, columns: [{name: id, data_tests: [unique, not_null]}]}]}"
    )
    command = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "--no-send-anonymous-usage-stats"]
    for number, rows in ((1, 10), (2, 5)):
        result = subprocess.run(
            [*command, "build", "--project-dir", str(tmp_path), "--profiles-dir", str(tmp_path),
             "--vars", f"{{round: r{number}, rows: {rows}}}"],
            capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
    # The second run replaced the rows that it brought and left the others.
    assert front.value("select round, count() from tiny.two group by round order by round") == "r1\t5\nr2\t5"
