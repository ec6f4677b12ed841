"""CDNOW's purchases as a churn frame, straight from the file, for models to be held against who came back."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import polars as pl

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
FILE = PROJECT_ROOT.parent / "shared" / "data" / "cdnow" / "CDNOW_master.txt"
AS_OF = date(1998, 7, 1)
HORIZON = 90


def purchases(file: Path = FILE) -> pl.DataFrame:
    """One row per purchase: customer_id, day, cds."""
    fields = pl.col("line").str.strip_chars().str.extract_all(r"\S+")
    return (
        pl.DataFrame({"line": file.read_text().splitlines()[1:]})  # a header first
        .filter(pl.col("line").str.strip_chars().str.len_chars() > 0)
        .select(
            customer_id=fields.list.get(0),
            day=fields.list.get(1).str.to_date("%Y%m%d"),
            cds=fields.list.get(2).cast(pl.Float64),
        )
    )


def features_at(bought: pl.DataFrame, day: date) -> pl.DataFrame:
    """Features of everyone who bought before `day`, from what was known before `day` alone."""
    past = bought.filter(pl.col("day") < day)

    def cds_in(first: int, last: int) -> pl.Expr:
        inside = (pl.col("day") >= day - timedelta(days=first)) & (pl.col("day") < day - timedelta(days=last))
        return pl.col("cds").filter(inside).sum()

    recent, before = pl.col("usage_last_30_days"), pl.col("usage_before")
    return (
        past.group_by("customer_id")
        .agg(
            usage_last_30_days=cds_in(30, 0),
            usage_before=cds_in(60, 30),
            days_since_last_login=(pl.lit(day) - pl.col("day").max()).dt.total_days().cast(pl.Float64),
            days_since_first_use=(pl.lit(day) - pl.col("day").min()).dt.total_days().cast(pl.Float64),
            active_days=pl.col("day").n_unique().cast(pl.Float64),
            usage_last_180_days=cds_in(180, 0),
        )
        .with_columns(
            feature_date=pl.lit(day),
            usage_change_pct=pl.when(before > 0)
            .then((recent - before) / before * 100)
            .otherwise(pl.when(recent > 0).then(100.0).otherwise(0.0)),
            failed_payments_count=0.0,
            support_tickets_count=0.0,
            feature_usage_score=0.0,
            api_error_rate=0.0,
        )
        .drop("usage_before")
    )


def labelled_frame(bought: pl.DataFrame, *, step_days: int = 14) -> pl.DataFrame:
    """Every feature date with a known label; churned: no purchase in the HORIZON days from the date on."""
    first = bought["day"].min()
    assert isinstance(first, date)
    parts = []
    day = AS_OF
    while day >= first + timedelta(days=30):
        if day + timedelta(days=HORIZON) <= AS_OF:
            ahead = pl.col("day").is_between(day, day + timedelta(days=HORIZON), closed="left")
            returned = bought.filter(ahead)["customer_id"].unique()
            parts.append(
                features_at(bought, day).with_columns(
                    churned=(~pl.col("customer_id").is_in(returned.implode())).cast(pl.UInt8),
                    label_known_on=pl.lit(day + timedelta(days=HORIZON)),
                )
            )
        day -= timedelta(days=step_days)
    return pl.concat(parts)
