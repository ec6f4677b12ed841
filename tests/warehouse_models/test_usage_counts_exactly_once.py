"""Usage counts each event once, whatever is repeated, late, corrected or interrupted.

The expected figures come from a Polars computation over the raw rows that knows nothing of dbt.
"""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from polars.testing import assert_frame_equal

from apex_pipelines.platform import clickhouse
from tests.warehouse_models.conftest import Models
from tests.warehouse_models.usage_by_hand import (
    Subscription,
    change,
    random_subscription,
    use_by_arrival,
    use_by_hour,
    use_by_period,
    use_by_slot,
)

START = datetime(2026, 5, 1, tzinfo=UTC)
METRICS = ["impressions", "api_calls", "data_transfer", "mediated_revenue", "sdk_errors", "feature_used"]
DAILY = "select customer_id, usage_date, metric_type, quantity, event_count from marts.usage_daily"
KEY = ["customer_id", "usage_date", "metric_type"]


class Arrivals:
    """A seeded stream of arrivals: new and late events, corrections, repeats that claim another time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.events: list[dict[str, object]] = []
        self.batches = 0

    def _event(self, loaded_at: datetime) -> dict[str, object]:
        late = timedelta(days=self.random.randrange(35)) if self.random.random() < 0.2 else timedelta()
        event: dict[str, object] = {
            "customer_id": f"cus_{self.random.randrange(12):032x}",
            # Few ids, so that customers share some: an id belongs to its customer only.
            "event_id": f"event-{self.random.randrange(4_000)}",
            "metric_type": self.random.choice(METRICS),
            "quantity": self.random.randrange(1, 10**12),
            "event_time": loaded_at - late - timedelta(milliseconds=self.random.randrange(86_400_000)),
            "metadata": '{"feature": "bidding"}',
            "historical": int(self.random.random() < 0.1),
        }
        if self.random.random() < 0.1:
            event |= {
                "quantity": -self.random.randrange(1, 10**12),
                "corrects_event_id": "event-1",
                "correction_reason": "test traffic",
            }
        return event

    def batch(self, rows: int, loaded_at: datetime) -> list[dict[str, object]]:
        """Rows of one spool segment, a fifth of them repeats of events that arrived before or in it."""
        batch: list[dict[str, object]] = []
        for row in range(rows):
            event = self._event(loaded_at)
            if self.random.random() < 0.2 and (self.events or batch):
                repeated = self.random.choice(self.events or batch)
                event |= {"customer_id": repeated["customer_id"], "event_id": repeated["event_id"]}
            event |= {
                "accepted_at": loaded_at,
                "loaded_at": loaded_at,
                "batch_id": f"batch-{self.batches:04}",
                "batch_row": row,
            }
            batch.append(event)
        self.batches += 1
        self.events += batch
        return batch


def first_arrivals(raw: pl.DataFrame) -> pl.DataFrame:
    """The first arrival of each pair of customer and event id."""
    return raw.sort("loaded_at", "batch_id", "batch_row").unique(
        ["customer_id", "event_id"], keep="first", maintain_order=True
    )


def counted_once(raw: pl.DataFrame) -> pl.DataFrame:
    """Use by customer, day and metric."""
    return (
        first_arrivals(raw)
        .group_by(
            "customer_id",
            pl.col("event_time").dt.convert_time_zone("UTC").dt.date().alias("usage_date"),
            "metric_type",
        )
        .agg(pl.col("quantity").sum(), pl.len().cast(pl.Int64).alias("event_count"))
    )


def assert_counts(models: Models, raw: pl.DataFrame) -> None:
    actual = models.frame(DAILY).with_columns(
        pl.col("metric_type").cast(pl.String), pl.col("event_count").cast(pl.Int64)
    )
    assert_frame_equal(actual.sort(KEY), counted_once(raw).sort(KEY), check_column_order=False)


BY_PERIOD = """
    select
        customer_id, subscription_id, period_start, period_end, is_trial, is_ended, toString(metric_type),
        quantity, included_quantity, overage_quantity, used_ratio
    from marts.usage_by_period
"""
BY_HOUR = """
    select customer_id, toDateTime64(usage_hour, 6, 'UTC'), toString(metric_type), quantity
    from marts.usage_hourly
"""
BY_ARRIVAL = """
    select customer_id, usage_date, known_on, toString(metric_type), quantity
    from intermediate.int_usage_arrivals
"""
BY_SLOT = """
    select customer_id, subscription_id, period_start, toString(metric_type), slot_start, slot_end, quantity
    from marts.metered_usage
    where quantity != 0
"""
ALL_OF_USAGE = ("usage_daily", "usage_by_period", "metered_usage", "usage_hourly", "int_usage_arrivals")


def assert_all_of_usage(
    models: Models, raw: pl.DataFrame, subscriptions: list[Subscription], now: datetime
) -> None:
    """Each mart of usage equals what is counted by hand from the first arrivals."""
    assert_counts(models, raw)
    events = first_arrivals(raw)
    for query, expected in (
        (BY_PERIOD, use_by_period(subscriptions, events, now)),
        (BY_SLOT, use_by_slot(subscriptions, events, now)),
        (BY_HOUR, use_by_hour(events, now.date(), days=8)),
        (BY_ARRIVAL, use_by_arrival(events)),
    ):
        assert sorted(models.frame(query).rows(), key=str) == expected


def _learn_changed_slots(models: Models, known: dict[tuple[object, ...], int], mark: datetime) -> datetime:
    """Bring `known` up to date by what changed since `mark`; the new mark."""
    slots = "select subscription_id, period_start, toString(metric_type), slot_start, quantity, processed_at"
    changed = models.frame(f"{slots} from marts.metered_usage where processed_at >= '{mark:%F %T.%f}'").rows()
    known.update({row[:4]: row[4] for row in changed})
    stored = models.frame(f"{slots} from marts.metered_usage").rows()
    assert {key: use for key, use in known.items() if use} == {row[:4]: row[4] for row in stored if row[4]}
    return max(row[5] for row in stored)


@pytest.mark.parametrize("seed", [7])
def test_use_equals_an_independent_count_after_each_run(models: Models, seed: int) -> None:
    """Days, periods, slots, hours and arrivals: with trials, changes of plan, ends, and late everything.

    Who reads only the slots that changed since the last time knows all of them.
    """
    known: dict[tuple[object, ...], int] = {}
    mark = datetime(1970, 1, 1, tzinfo=UTC)
    arrivals = Arrivals(seed)
    chance = arrivals.random
    loaded_at = START + timedelta(days=10)
    subscriptions = [
        random_subscription(chance, f"cus_{number:032x}", START - timedelta(days=80)) for number in range(12)
    ]
    for round_ in range(3):
        for _ in range(chance.randrange(1, 4)):
            models.insert_events(arrivals.batch(chance.randrange(1, 1_500), loaded_at))
            loaded_at += timedelta(minutes=chance.randrange(1, 90))
        for subscription in subscriptions:
            if round_ and chance.random() < 0.5:
                change(chance, subscription, loaded_at)
            subscription.store(models)
        models.build(*ALL_OF_USAGE, as_of=loaded_at)
        raw = pl.DataFrame(arrivals.events)
        assert_all_of_usage(models, raw, subscriptions, loaded_at)
        mark = _learn_changed_slots(models, known, mark)
        models.run("test", "--select", "metered_usage,test_type:singular", as_of=loaded_at)
        assert raw.height > counted_once(raw)["event_count"].sum(), f"round {round_} had no repeats"
        loaded_at += timedelta(days=3, microseconds=chance.randrange(10**9))

    everything = (
        "select * except (processed_at) from intermediate.int_usage_events order by customer_id, event_id"
    )
    daily = (
        "select * except (processed_at) from marts.usage_daily order by customer_id, usage_date, metric_type"
    )
    events_before, daily_before = models.frame(everything), models.frame(daily)

    # Nothing new but the time.
    models.build(*ALL_OF_USAGE, as_of=loaded_at)
    assert_all_of_usage(models, raw, subscriptions, loaded_at)

    models.run(
        "build", "--full-refresh", "--select", *(f"+{model}" for model in ALL_OF_USAGE),
        "--exclude-resource-type", "unit_test", "--indirect-selection", "cautious", as_of=loaded_at,
    )  # fmt: skip
    assert_frame_equal(models.frame(everything), events_before)
    assert_frame_equal(models.frame(daily), daily_before)
    assert_all_of_usage(models, raw, subscriptions, loaded_at)


def test_a_late_event_reopens_its_own_day_only(models: Models) -> None:
    loaded_at = START + timedelta(days=20)
    days = [
        {
            "customer_id": "cus_a", "event_id": f"e{day}", "metric_type": "impressions", "quantity": 10,
            "event_time": START + timedelta(days=day), "accepted_at": loaded_at, "loaded_at": loaded_at,
            "batch_id": "b1", "batch_row": day,
        }
        for day in range(10)
    ]  # fmt: skip
    models.insert_events(days)
    models.build("usage_daily")
    # What a day holds is summed from its events when it is reopened, and not looked at otherwise: a figure
    # spoilt by hand survives on every day but the late event's.
    models.client.command(
        "alter table marts.usage_daily update quantity = 0 where 1 settings mutations_sync = 2"
    )

    late = days[3] | {"event_id": "late", "quantity": 5, "loaded_at": loaded_at + timedelta(minutes=1)}
    models.insert_events([late])
    models.run("run", "--select", "int_usage_events", "usage_daily")

    rows = models.client.query("select usage_date, quantity from marts.usage_daily").result_rows
    totals = {row[0]: row[1] for row in rows}
    late_day = (START + timedelta(days=3)).date()
    assert totals.pop(late_day) == 15
    assert set(totals.values()) == {0}
    assert len(totals) == 9


def test_rows_that_become_visible_late_are_counted(models: Models) -> None:
    loaded_at = START + timedelta(days=20)
    event = {
        "customer_id": "cus_a", "event_id": "on_time", "metric_type": "impressions", "quantity": 10,
        "event_time": START, "accepted_at": START, "loaded_at": loaded_at, "batch_id": "b2", "batch_row": 0,
    }  # fmt: skip
    models.insert_events([event])
    models.build("usage_daily")
    # An insert that began before the other and ended after the run looked.
    behind = event | {"loaded_at": loaded_at - timedelta(minutes=59), "batch_id": "b1", "quantity": 3}
    models.insert_events([behind | {"event_id": "late_to_be_seen"}, behind])
    for _ in range(2):
        models.run("run", "--select", "int_usage_events", "usage_daily")
        total = models.client.query("select sum(quantity), sum(event_count) from marts.usage_daily")
        assert total.result_rows == [(13, 2)]


def test_a_server_clock_that_is_set_back_hides_no_event(models: Models) -> None:
    """A run while it was five hours ahead, and runs after it was set right."""
    ahead = datetime.now(UTC) + timedelta(hours=5)
    event = {
        "customer_id": "cus_a", "event_id": "ahead", "metric_type": "impressions", "quantity": 10,
        "event_time": START, "accepted_at": START, "loaded_at": ahead, "batch_id": "b2", "batch_row": 0,
    }  # fmt: skip
    models.insert_events([event])
    models.build("usage_daily")
    # Bring what that run wrote by its clock to where it would be.
    marks, events = "intermediate.model_watermarks", "intermediate.int_usage_events"
    for table, columns in (
        (marks, "recorded_at + interval 5 hour as recorded_at, if(model = 'int_usage_events', watermark, "
                "watermark + interval 5 hour) as watermark"),
        (events, "processed_at + interval 5 hour as processed_at"),
    ):  # fmt: skip
        models.client.command(f"create table {table}_ahead as {table}")
        models.client.command(f"insert into {table}_ahead select * replace ({columns}) from {table}")
        models.client.command(f"exchange tables {table} and {table}_ahead")
        models.client.command(f"drop table {table}_ahead sync")
    for number in range(1, 4):
        # Rows carry a later time than those before, whatever the clock says: the loader sees to it.
        loaded_at = ahead + timedelta(microseconds=number)
        models.insert_events([event | {"event_id": f"later-{number}", "loaded_at": loaded_at}, event])
        models.run("run", "--select", "int_usage_events", "usage_daily")
        total = models.client.query("select sum(quantity), sum(event_count) from marts.usage_daily")
        assert total.result_rows == [(10 * (number + 1), number + 1)]


def test_an_event_that_landed_and_is_not_counted_is_found(models: Models) -> None:
    loaded_at = START + timedelta(days=20)
    event = {
        "customer_id": "cus_a", "event_id": "newest", "metric_type": "impressions", "quantity": 10,
        "event_time": START, "accepted_at": START, "loaded_at": loaded_at, "batch_id": "b2", "batch_row": 0,
    }  # fmt: skip
    two_days = timedelta(days=2)
    inside = event | {"event_id": "inside", "loaded_at": loaded_at - two_days + timedelta(seconds=1)}
    before = event | {"event_id": "before", "loaded_at": loaded_at - two_days}
    models.insert_events([event, event | {"batch_row": 1}, inside, before])
    check = ("test", "--select", "landed_events_are_counted")
    models.build("int_usage_events")
    models.run(*check)

    # Behind the mark and not read yet: the next run's, and no loss.
    models.insert_events([event | {"event_id": "seen_late", "loaded_at": loaded_at - timedelta(minutes=5)}])
    models.run(*check)
    models.run("run", "--select", "int_usage_events")
    models.run(*check)

    lose = "delete from intermediate.int_usage_events where event_id = "
    models.client.command(lose + "'before'")
    models.run(*check)
    models.client.command(lose + "'seen_late'")
    with pytest.raises(pytest.fail.Exception, match="Got 1 result"):
        models.run(*check)
    models.client.command(lose + "'newest'")
    with pytest.raises(pytest.fail.Exception, match="Got 2 results"):
        models.run(*check)


def test_a_lost_event_of_another_customer_is_not_mistaken_for_counted(models: Models) -> None:
    event = {
        "customer_id": "cus_a", "event_id": "same", "metric_type": "impressions", "quantity": 10,
        "event_time": START, "accepted_at": START, "loaded_at": START, "batch_id": "b", "batch_row": 0,
    }  # fmt: skip
    models.insert_events([event, event | {"customer_id": "cus_b", "batch_row": 1}])
    models.build("int_usage_events")
    models.client.command("delete from intermediate.int_usage_events where customer_id = 'cus_b'")
    with pytest.raises(pytest.fail.Exception, match="Got 1 result"):
        models.run("test", "--select", "landed_events_are_counted")


def _insert_many(models: Models, part: int, rows: int) -> None:
    """`rows` arrivals made by the server; in a later part every tenth has an id below `rows`."""
    models.client.command(f"""
        insert into raw.usage_events
        select
            concat('cus_', toString(cityHash64(id) % 500)) as customer_id,
            concat('event-', toString(id)) as event_id,
            'impressions' as metric_type,
            cityHash64(id, 'quantity') % 1000 as quantity,
            toDateTime64('{START:%Y-%m-%d} 00:00:00', 3, 'UTC') + id % 2000000 as event_time,
            event_time as accepted_at,
            '{{}}' as metadata,
            '' as corrects_event_id,
            '' as correction_reason,
            0 as historical,
            'batch-{part}' as batch_id,
            number as batch_row,
            toDateTime64('2026-05-30 00:00:00', 6, 'UTC') + {part} * 7200 as loaded_at
        from (
            select number, if(number % 10 = 0, number, {part} * {rows} + number) as id
            from numbers({rows})
        )""")


@pytest.mark.parametrize(
    ("model", "state"),
    [
        ("int_usage_events", "begun"),
        pytest.param("int_usage_events", "stored", marks=pytest.mark.slow),
        pytest.param("usage_daily", "begun", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_changes_nothing_that_the_next_one_does_not_heal(
    models: Models, model: str, state: str
) -> None:
    _insert_many(models, 0, 100_000)
    models.build("usage_daily")
    marks = f"select count() from intermediate.model_watermarks where model = '{model}' and state = '{state}'"
    marks_before = models.client.command(marks)

    _insert_many(models, 1, 400_000)
    process = models.start("run", "--select", "int_usage_events", "usage_daily")
    deadline = time.monotonic() + 60
    while models.client.command(marks) == marks_before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -9

    models.run("run", "--select", "int_usage_events", "usage_daily")
    assert_counts(models, models.frame("select * from raw.usage_events"))
    # Nothing that the killed run left on the server may come in afterwards.
    stored = "select count(), uniqExact(customer_id, event_id) from intermediate.int_usage_events"
    time.sleep(1)
    assert models.client.query(stored).result_rows == [(490_000, 490_000)]


def test_a_statement_that_a_killed_run_left_behind_is_ended(models: Models) -> None:
    _insert_many(models, 0, 1_000)
    models.build("usage_daily")
    _insert_many(models, 1, 1_000)
    # As the server would still be working for a dbt that is gone: slow, and with dbt's comment in it.
    leftover = """
        /* {"node_id": "model.apex.int_usage_events"} */
        insert into intermediate.int_usage_events
            (customer_id, event_id, metric_type, quantity, event_time, usage_date, processed_at)
        select customer_id, event_id, metric_type, quantity, event_time, toDate(event_time, 'UTC'), now64(6)
        from raw.usage_events
        where batch_id = 'batch-1' and sleepEachRow(0.1) = 0
        settings max_block_size = 10, min_insert_block_size_rows = 10, max_threads = 1,
            function_sleep_max_microseconds_per_block = 0
    """
    failures: list[str] = []

    def work() -> None:
        client = clickhouse.connect(models.settings, query_origin="tests")
        try:
            client.command(leftover)
        except DatabaseError as error:
            failures.append(str(error))
        finally:
            client.close()

    thread = threading.Thread(target=work)
    thread.start()
    models.run("run", "--select", "int_usage_events", "usage_daily")
    thread.join(30)
    assert not thread.is_alive()
    assert failures
    assert "QUERY_WAS_CANCELLED" in failures[0]
    assert_counts(models, models.frame("select * from raw.usage_events"))
