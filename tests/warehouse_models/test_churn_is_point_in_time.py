"""What churn features know ends before their feature date; labels say what came after it."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

import polars as pl
from polars.testing import assert_frame_equal

from tests.warehouse_models.conftest import Models

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
STEP = 14
THEN = date(2026, 4, 23)  # a regular feature date: a multiple of 14 days after 1970-01-01
MIDNIGHT = datetime(2026, 4, 23, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)
CHURN = ("int_churn_population", "churn_features")
CUSTOMERS = [f"cus_{number:032x}" for number in range(8)]


def _event(
    customer: str, number: int, metric: str, quantity: int, at: datetime, loaded: datetime
) -> dict[str, object]:
    return {
        "customer_id": customer, "event_id": f"{customer}-{number}",
        "metric_type": metric, "quantity": quantity, "event_time": at, "accepted_at": at,
        "metadata": '{"feature": "bidding"}', "loaded_at": loaded,
        "batch_id": f"b-{loaded:%Y%m%d%H%M%S}", "batch_row": number,
    }  # fmt: skip


def _history(seed: int, until: datetime) -> list[dict[str, object]]:
    """Days with gaps, of customers of whom some fall silent."""
    chance = random.Random(seed)
    events: list[dict[str, object]] = []
    for index, customer in enumerate(CUSTOMERS):
        silent_after = FIRST_DAY + timedelta(days=20 + 15 * index)
        day = FIRST_DAY
        while day < min(until, silent_after):
            for metric in ("impressions", "api_calls", "sdk_errors", "console_logins", "feature_used"):
                if chance.random() < 0.4:
                    at = day + timedelta(seconds=chance.randrange(86_400))
                    events.append(_event(customer, len(events), metric, chance.randrange(1, 500), at, until))
            day += timedelta(days=1)
    return events


def _insert_payment(models: Models, customer: str, at: datetime) -> None:
    columns: dict[str, object] = {
        "id": f"pay_{customer}_{at:%Y%m%d%H%M%S}", "customer_id": customer, "invoice_id": f"in_{at:%Y%m%d}",
        "attempt_number": 1, "status": "failed", "amount_cents": 9_900, "currency": "usd", "occurred_at": at,
        "snapshot_at": at,
    }  # fmt: skip
    models.client.insert("raw.payments", [list(columns.values())], column_names=list(columns))


def _features(models: Models) -> pl.DataFrame:
    """Rows of regular feature dates, which do not depend on when they are computed."""
    return models.frame(
        "select * from marts.churn_features "
        f"where feature_date <= '{THEN}' and toUInt32(feature_date) % {STEP} = 0 "
        "order by feature_date, customer_id"
    )


def _accepted(event: dict[str, object], at: datetime) -> dict[str, object]:
    """The event, accepted and loaded later than it happened."""
    return event | {"accepted_at": at, "loaded_at": at}


def _later_events() -> list[dict[str, object]]:
    """All that arrives after THEN: use that is later, use that is late, and corrections of what was known."""
    future = [
        _event(customer, 100_000 + number, metric, 10**6, MIDNIGHT + timedelta(days=number), LATER)
        for customer in CUSTOMERS
        for number, metric in enumerate(["impressions", "sdk_errors", "console_logins", "support_tickets"])
    ]
    late = [
        _event(
            customer, 110_000 + days, metric, 777, MIDNIGHT - timedelta(days=days, milliseconds=1), MIDNIGHT
        )
        for customer in CUSTOMERS
        for days in (0, 6, 29, 34)
        for metric in ("impressions", "feature_used")
    ]
    first_ever = [_event(CUSTOMERS[2], 120_000, "impressions", 5, FIRST_DAY - timedelta(days=20), MIDNIGHT)]
    corrections = [
        _event(customer, 130_000, "impressions", -400, MIDNIGHT - timedelta(days=3, hours=1), MIDNIGHT)
        for customer in CUSTOMERS
    ]
    for number, event in enumerate([*late, *first_ever, *corrections]):
        event["event_id"] = f"late-{number}"
    return [*future, *(_accepted(event, LATER) for event in [*late, *first_ever, *corrections])]


def test_features_of_a_past_date_never_change(models: Models) -> None:
    models.insert_customers(CUSTOMERS, FIRST_DAY)
    for customer in CUSTOMERS:
        models.insert_subscription(customer, FIRST_DAY)
    models.insert_events(_history(3, MIDNIGHT))
    _insert_payment(models, CUSTOMERS[0], MIDNIGHT - timedelta(microseconds=1))
    models.build("churn_features", as_of=THEN)
    then = _features(models)
    assert set(then["feature_date"].to_list()) == {THEN - timedelta(days=STEP * back) for back in range(6)}
    newest = then.filter(pl.col("feature_date") == THEN)
    assert newest.height == len(CUSTOMERS)
    assert newest.filter(pl.col("customer_id") == CUSTOMERS[0])["failed_payments_count"].to_list() == [1.0]

    # What happens or arrives later: from the very midnight on, failed payments, one who leaves, one who
    # changes plan.
    models.insert_events(_later_events())
    for customer in CUSTOMERS:
        _insert_payment(models, customer, MIDNIGHT)
    models.client.command("truncate table raw.subscriptions")
    models.insert_subscription(CUSTOMERS[0], FIRST_DAY, cancelled_at=MIDNIGHT)
    models.insert_subscription(CUSTOMERS[1], FIRST_DAY, plan_type="enterprise", base_price_cents=99_900)
    for customer in CUSTOMERS[2:]:
        models.insert_subscription(customer, FIRST_DAY)

    # In a run that adds to what is stored, of another day; and anew, of either day.
    later = THEN + timedelta(days=45)
    models.build("churn_features", as_of=later)
    added = models.frame("select * from marts.churn_features order by feature_date, customer_id")
    assert_frame_equal(_features(models), then)
    models.run("run", "--full-refresh", "--select", *CHURN, as_of=later)
    assert_frame_equal(
        models.frame("select * from marts.churn_features order by feature_date, customer_id"), added
    )
    models.run("run", "--full-refresh", "--select", *CHURN, as_of=THEN)
    assert_frame_equal(_features(models), then)

    # Dates after the arrival know what arrived.
    known = added.filter(pl.col("feature_date") == later, pl.col("customer_id") == CUSTOMERS[2])
    assert known["tenure_days"].item() == (later - FIRST_DAY.date()).days + 20

    # The leak that all this must catch: late use and corrections taken for known when they happened.
    models.client.command(
        "alter table intermediate.int_usage_events update known_on = usage_date where 1 "
        "settings mutations_sync = 2"
    )
    models.run("run", "--full-refresh", "--select", "int_usage_arrivals", *CHURN, as_of=THEN)
    leaked = _features(models).filter(pl.col("feature_date") == THEN)
    differs = leaked.filter(pl.col("usage_last_30_days") != newest["usage_last_30_days"])
    assert differs.height == len(CUSTOMERS)


def test_history_that_is_brought_counts_as_known_when_it_happened(models: Models) -> None:
    """Rows of past dates follow an import, in a run that adds as in one that begins anew; no others do."""
    models.insert_customers(CUSTOMERS, FIRST_DAY)
    for customer in CUSTOMERS:
        models.insert_subscription(customer, FIRST_DAY)
    models.insert_events(_history(4, MIDNIGHT))
    models.build("churn_features", as_of=THEN)
    before = _features(models)
    brought = [
        _accepted(
            _event(CUSTOMERS[7], 140_000 + day, "impressions", 9, FIRST_DAY + timedelta(days=day), LATER),
            LATER,
        )
        for day in range(60, 70)
    ]
    models.insert_events([event | {"historical": 1} for event in brought])
    _insert_payment(models, CUSTOMERS[6], MIDNIGHT - timedelta(days=1))  # known late to the copy
    models.build("churn_features", as_of=THEN)
    added = _features(models)
    changed = (
        pl.concat([before, added]).unique(keep="none").select("customer_id", "feature_date").unique().rows()
    )
    imported = {date for customer, date in changed if customer == CUSTOMERS[7]}
    assert imported == {day for day in set(added["feature_date"]) if day > date(2026, 3, 2)}
    assert {(customer, day) for customer, day in changed if customer != CUSTOMERS[7]} == {
        (CUSTOMERS[6], THEN)
    }
    models.run("run", "--full-refresh", "--select", *CHURN, as_of=THEN)
    assert_frame_equal(_features(models), added)

    # Another label asks for other rows.
    models.build("churn_features", as_of=THEN, churn_label="inactivity")
    other = _features(models)
    models.run("run", "--full-refresh", "--select", *CHURN, as_of=THEN, churn_label="inactivity")
    assert_frame_equal(_features(models), other)


def test_inactivity_labels_equal_an_independent_computation(models: Models) -> None:
    as_of = date(2026, 5, 10)
    horizon, step = 20, 10
    events = _history(5, MIDNIGHT)
    models.insert_customers(CUSTOMERS, datetime(2026, 5, 1, tzinfo=UTC))  # an import: the account is younger
    models.insert_events(events)
    models.build(
        "churn_labels", as_of=as_of,
        churn_label="inactivity", churn_horizon_days=horizon, churn_feature_step_days=step,
    )  # fmt: skip

    days = pl.DataFrame(events).with_columns(pl.col("event_time").dt.date().alias("day"))
    active = (
        days.filter(pl.col("metric_type") == "impressions")
        .group_by("customer_id", "day")
        .agg(pl.col("quantity").sum())
    )
    first_use = {str(row[0]): row[1] for row in days.group_by("customer_id").agg(pl.col("day").min()).rows()}
    expected = set()
    epoch = date(1970, 1, 1)
    regular = as_of - timedelta(days=(as_of - epoch).days % step)
    dates = {as_of} | {regular - timedelta(days=step * back) for back in range(50)}
    for feature_date in sorted(
        date_ for date_ in dates if date_ >= min(first_use.values()) + timedelta(days=30)
    ):
        if feature_date + timedelta(days=horizon) <= as_of:
            for customer in CUSTOMERS:
                if first_use[customer] < feature_date:
                    stayed = active.filter(
                        pl.col("customer_id") == customer,
                        pl.col("day") >= feature_date,
                        pl.col("day") < feature_date + timedelta(days=horizon),
                        pl.col("quantity") > 0,
                    ).height
                    expected.add((customer, feature_date, int(stayed == 0)))

    labels = models.client.query(
        "select customer_id, feature_date, churned from marts.churn_labels"
    ).result_rows
    assert set(labels) == expected
    assert {churned for _, _, churned in expected} == {0, 1}
