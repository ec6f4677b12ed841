"""What the churn domain reads from the marts and writes to `ml.churn_scores`.

Belongs here: every query of this domain. Does not belong here: what is done with the rows.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import cast

import polars as pl
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT

SCORES = "ml.churn_scores"
SCORE_COLUMNS = (
    "customer_id",
    "feature_date",
    "model_version",
    "probability",
    "expected_profit",
    "reasons",
    "holdout",
    "scored_at",
)
MAX_ROWS = 800_000  # about 250 MB as a frame; above it, customers are sampled in the warehouse
INSERT_ROWS = 50_000
DELETE_CUSTOMERS = 1_000  # keeps a statement far below the server's limit on query size


class ChurnInputMissing(RuntimeError):
    """A mart that this domain reads is not there or was built for another question."""


class ScoresNotStored(RuntimeError):
    """The warehouse holds fewer scores than were sent."""


def read_training_frame(client: Client, as_of_date: date, *, max_rows: int = MAX_ROWS) -> pl.DataFrame:
    """Features with labels that were known on `as_of_date`; the grain is customer and feature date.

    Above `max_rows`, whole customers are left out, the same ones each time.

    Returns
    -------
    pl.DataFrame
        The columns of marts.churn_features, `churned` (0 or 1), `label_known_on`, and
        `monthly_price_usd` (null where no subscription is known).

    Raises
    ------
    ChurnInputMissing
        If a mart is missing.
    """
    _require(client, "marts.churn_features")
    known = labelled_rows(client, as_of_date)
    kept = 1.0 if known <= max_rows else max_rows / known
    labelled = _frame(
        client,
        """
        select
            features.* except (row_basis),
            labels.churned as churned,
            labels.label_known_on as label_known_on
        from marts.churn_features as features
        inner join
        (
            select customer_id as labelled_customer_id, feature_date as labelled_date, churned, label_known_on
            from marts.churn_labels
            where label_known_on <= {as_of:Date}
              and cityHash64(customer_id) % 1000000 < {kept:UInt32}
        ) as labels
            on features.customer_id = labels.labelled_customer_id
           and features.feature_date = labels.labelled_date
        order by features.feature_date, features.customer_id
        """,
        {"as_of": as_of_date, "kept": round(kept * 1_000_000)},
    )
    return _with_prices(client, labelled)


def labelled_rows(client: Client, as_of_date: date) -> int:
    """How many labels were known on `as_of_date`.

    Raises
    ------
    ChurnInputMissing
        If the mart is missing.
    """
    _require(client, "marts.churn_labels")
    found = client.query(
        "select count() from marts.churn_labels where label_known_on <= {as_of:Date}",
        parameters={"as_of": as_of_date},
    )
    return int(found.result_rows[0][0])


def read_scoring_frame(client: Client, as_of_date: date) -> pl.DataFrame:
    """Features of the customers active on `as_of_date`, with `monthly_price_usd`.

    Raises
    ------
    ChurnInputMissing
        If the mart is missing.
    """
    _require(client, "marts.churn_features")
    features = _frame(
        client,
        "select * except (row_basis) from marts.churn_features where feature_date = {as_of:Date}",
        {"as_of": as_of_date},
    )
    return _with_prices(client, features)


def write_scores(client: Client, scores: pl.DataFrame) -> int:
    """Store scores so that writing the same day and model again leaves exactly the rows given last.

    Parameters
    ----------
    scores : pl.DataFrame
        `SCORE_COLUMNS`, all of one feature date and model version; `scored_at` in UTC.

    Returns
    -------
    int
        Customers stored for that date and version.

    Raises
    ------
    ValueError
        If the frame mixes dates or versions.
    ScoresNotStored
        If the warehouse does not hold all of them afterwards.
    """
    if scores.is_empty():
        return 0
    grains = scores.select("feature_date", "model_version").unique()
    if grains.height > 1:
        raise ValueError(f"scores of one date and model at a time, received {grains.rows()}")
    day, version = cast(tuple[date, str], grains.row(0))
    ordered = scores.select(SCORE_COLUMNS).with_columns(pl.col("holdout").cast(pl.UInt8))
    for part in ordered.iter_slices(INSERT_ROWS):
        # ClickHouse reads Arrow's older string layout only.
        table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
        client.insert_arrow(SCORES, table, settings=DURABLE_INSERT)
    stored = _stored_customers(client, day, version)
    given = set(ordered["customer_id"])
    if missing := given - stored:
        raise ScoresNotStored(
            f"{len(missing)} of {len(given)} scores of {day} by {version} are not in {SCORES}, "
            f"such as {min(missing)}"
        )
    # Customers of an earlier run of this day who are no longer scored would otherwise stay for ever.
    gone = sorted(stored - given)
    for start in range(0, len(gone), DELETE_CUSTOMERS):
        client.command(
            f"delete from {SCORES} "  # noqa: S608 - a constant
            "where feature_date = {day:Date} and model_version = {version:String} "
            "and customer_id in {gone:Array(String)}",
            parameters={"day": day, "version": version, "gone": gone[start : start + DELETE_CUSTOMERS]},
        )
    return len(given)


def latest_scores(client: Client, as_of_date: date) -> pl.DataFrame:
    """The newest score per customer on or before `as_of_date`; the same rows that segments look at."""
    return _frame(
        client,
        f"""
        select {", ".join(SCORE_COLUMNS)}
        from {SCORES} final
        where feature_date <= {{as_of:Date}}
        order by feature_date desc, scored_at desc
        limit 1 by customer_id
        """,  # noqa: S608 - only constants of this module are put in
        {"as_of": as_of_date},
    )


def _stored_customers(client: Client, day: date, version: str) -> set[str]:
    frame = _frame(
        client,
        f"select customer_id from {SCORES} final "  # noqa: S608 - a constant
        "where feature_date = {day:Date} and model_version = {version:String}",
        {"day": day, "version": version},
    )
    return set(frame["customer_id"])


def _with_prices(client: Client, frame: pl.DataFrame) -> pl.DataFrame:
    """Add what each customer pays a month, by their newest subscription."""
    prices = _frame(
        client,
        "select customer_id, argMax(base_price_cents, started_at) / 100 as monthly_price_usd "
        "from raw.subscriptions group by customer_id",
        {},
    )
    # Looked up rather than joined: a join would copy every other column of a large frame.
    price = pl.col("customer_id").replace_strict(
        prices["customer_id"], prices["monthly_price_usd"], default=None, return_dtype=pl.Float64
    )
    return frame.with_columns(price.alias("monthly_price_usd"))


def _require(client: Client, table: str) -> None:
    if not int(cast(int, client.command(f"exists table {table}"))):
        raise ChurnInputMissing(f"{table} does not exist; build the marts first (dbt build)")


def _frame(client: Client, query: str, parameters: dict[str, date | datetime | str | int]) -> pl.DataFrame:
    table = client.query_arrow(query, parameters=parameters, use_strings=True)
    return cast(pl.DataFrame, pl.from_arrow(table))
