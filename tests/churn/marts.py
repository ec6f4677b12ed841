"""Puts a frame into the warehouse as the churn marts that dbt would have built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
from clickhouse_connect.driver.client import Client

from ml.features import FEATURES

MARTS = ("marts.churn_features", "marts.churn_labels")


def fill(client: Client, table: str, frame: pl.DataFrame) -> None:
    """Insert a frame whose columns are the table's."""
    client.insert_arrow(table, frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


@contextmanager
def no_churn_marts(client: Client) -> Iterator[None]:
    """Set aside the marts that a build of the same server may have left, and put them back afterwards."""
    client.command("create database if not exists marts")
    aside = [name for name in MARTS if int(client.command(f"exists table {name}"))]
    for name in aside:
        client.command(f"rename table {name} to {name}_aside")
    try:
        yield
    finally:
        for name in MARTS:
            client.command(f"drop table if exists {name}")
        for name in aside:
            client.command(f"rename table {name}_aside to {name}")


@contextmanager
def churn_marts(client: Client, labelled: pl.DataFrame, today: pl.DataFrame) -> Iterator[None]:
    """Tables marts.churn_features (all dates) and marts.churn_labels, gone again afterwards."""
    columns = ", ".join(f"{name} Float64" for name in FEATURES)
    with no_churn_marts(client):
        client.command(
            f"create table marts.churn_features (customer_id String, feature_date Date, {columns}) "
            "engine = MergeTree order by (feature_date, customer_id)"
        )
        client.command(
            "create table marts.churn_labels (customer_id String, feature_date Date, churned UInt8, "
            "label_known_on Date) engine = MergeTree order by (feature_date, customer_id)"
        )
        wanted = ["customer_id", "feature_date", *FEATURES]
        fill(client, "marts.churn_features", pl.concat([labelled.select(wanted), today.select(wanted)]))
        labels = labelled.select("customer_id", "feature_date", "churned", "label_known_on")
        fill(client, "marts.churn_labels", labels)
        yield
