"""Synthetic worlds whose truth is known: each row's real probability to leave is part of the frame."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import polars as pl

from ml.features import FEATURES

AS_OF = date(2026, 6, 1)
HORIZON = 30


def panel(
    *,
    customers: int = 900,
    dates: int = 18,
    step_days: int = 14,
    base_log_odds: float = -3.0,
    strength: float = 1.0,
    seed: int = 7,
    usage_only: bool = False,
) -> pl.DataFrame:
    """Customers seen every `step_days`, whose odds to leave hang on a few features; `truth` is the real
    probability. Customers who left are not seen again. The last feature date is HORIZON before AS_OF.
    """
    generator = np.random.default_rng(seed)
    lasting = generator.normal(size=(customers, 3))
    here = np.ones(customers, dtype=bool)
    names = np.array([f"cus_{number:032x}" for number in range(customers)])
    parts = []
    for index in range(dates):
        day = AS_OF - timedelta(days=HORIZON + step_days * (dates - 1 - index))
        mood = 0.8 * lasting + 0.6 * generator.normal(size=(customers, 3))
        usage, change, login = mood.T
        failed = generator.poisson(0.2, customers)
        log_odds = base_log_odds + strength * (-0.7 * change + 0.7 * login + 0.9 * failed - 0.3 * usage)
        truth = 1 / (1 + np.exp(-log_odds))
        churned = generator.random(customers) < truth
        other = np.zeros(customers) if usage_only else None
        columns = {
            "usage_last_30_days": np.exp(8 + 1.5 * usage),
            "usage_change_pct": 40 * change,
            "failed_payments_count": failed.astype(float),
            "support_tickets_count": other if usage_only else generator.poisson(0.3, customers).astype(float),
            "days_since_last_login": np.exp(1.5 + login),
            "feature_usage_score": other if usage_only else generator.random(customers),
            "api_error_rate": other if usage_only else generator.beta(1, 50, customers),
        }
        frame = pl.DataFrame(
            {"customer_id": names, "feature_date": [day] * customers, **columns, "truth": truth}
        ).with_columns(
            churned=pl.Series(churned.astype(np.uint8)),
            label_known_on=pl.col("feature_date") + timedelta(days=HORIZON),
        )
        parts.append(frame.filter(pl.Series(here)))
        here &= ~churned
    return pl.concat(parts)


def without_truth(frame: pl.DataFrame) -> pl.DataFrame:
    """What a model may see."""
    return frame.drop("truth")


def minimal(rows: int, churned: list[int], day: date = AS_OF) -> pl.DataFrame:
    """A frame with every required column, all features zero."""
    return pl.DataFrame(
        {
            "customer_id": [f"cus_{number:032x}" for number in range(rows)],
            "feature_date": [day] * rows,
            **{name: [0.0] * rows for name in FEATURES},
            "churned": churned,
        }
    )
