"""What a run costs by how much history there is, and what building everything anew costs.

Seconds are those of the statements as the server logged them, without the start of dbt: the processors',
which other work on the machine changes little, and the clock's. The long form, with 200 M events:
``pytest benchmarks/test_history.py -m "bench and slow" -s``.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pytest
from clickhouse_connect.driver.client import Client

from benchmarks.usage_history import END, ONE_PER_CENT_LATE, land
from tests.warehouse_models.conftest import Models

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7_200)]

INCREMENTAL = ("int_usage_events", "usage_daily", "int_usage_arrivals", "usage_hourly", "usage_by_period")
BEFORE = ("+int_period_allowances", "stg_usage_events")
CUSTOMERS = 3_000
SPAN = timedelta(days=900)
AS_OF = date(2026, 6, 1)
ADDED = 100_000
ADDITIONS = 3
BARE_AT_MOST = 50_000_000
MOST_TIMES_DEARER = 1.5
LEAST_SHARE_OF_BARE_SPEED = 1 / 3

# Trials, odd instants, and subscriptions that begin all along.
_SUBSCRIPTIONS = """
insert into raw.{table} ({columns})
select {values}
from (
    select
        concat('cus_', leftPad(toString(number), 32, '0')) as customer,
        toDateTime64('{first:%Y-%m-%d %H:%M:%S}', 6, 'UTC') + sipHash64(number) % 60000000 as begun
    from numbers({customers})
)
"""
_COST = """
select
    sum(ProfileEvents['OSCPUVirtualTimeMicroseconds']) / 1e6, sum(query_duration_ms) / 1e3, sum(read_rows),
    max(memory_usage) / 1e6
from system.query_log
where
    type = 'QueryFinish' and event_time_microseconds > {since:DateTime64(6)}
    and position(query, {mark:String}) > 0
    and position(query, 'system.query_log') = 0
"""
# What a person would write to have the same figures once, without knowing what changed.
_BARE = {
    "int_usage_events": """
        select
            customer_id, event_id, event.1 as metric_type, event.2 as quantity, event.3 as event_time,
            event.4 as accepted_at, event.5 as metadata, toDate(event.3, 'UTC') as usage_date
        from (
            select customer_id, event_id, argMin(
                (metric_type, quantity, event_time, accepted_at, metadata), (loaded_at, batch_id, batch_row)
            ) as event
            from raw.usage_events
            group by customer_id, event_id
        )
        order by customer_id, usage_date, event_id""",
    "usage_daily": """
        select
            customer_id, usage_date, metric_type, sum(event.quantity) as quantity, count() as event_count,
            min(event_time) as first_event_at, max(event_time) as last_event_at
        from intermediate.int_usage_events as event
        group by customer_id, usage_date, metric_type
        order by customer_id, usage_date, metric_type""",
    "int_usage_arrivals": """
        select customer_id, usage_date, known_on, metric_type, sum(quantity) as quantity
        from intermediate.int_usage_events
        group by customer_id, usage_date, known_on, metric_type
        order by customer_id, usage_date, known_on, metric_type""",
    "usage_hourly": """
        select customer_id, toStartOfHour(event_time) as usage_hour, metric_type, sum(quantity) as quantity
        from intermediate.int_usage_events
        where usage_date > toDate('2026-06-01') - 8
        group by customer_id, usage_hour, metric_type
        order by customer_id, usage_hour, metric_type""",
    "usage_by_period": """
        select period.subscription_id as subscription_id, period.period_start as period_start, metric_type,
            sum(quantity) as quantity
        from intermediate.int_usage_events as event
        inner join intermediate.int_billing_periods as period on event.customer_id = period.customer_id
        where event_time >= period_start and event_time < period_end
        group by subscription_id, period_start, metric_type
        order by subscription_id, period_start, metric_type""",
}


@dataclass(frozen=True)
class Cost:
    """Of some statements: seconds of the processors and of the clock, rows read, the peak in MB."""

    processor: float
    clock: float
    rows: int
    megabytes: float

    def __str__(self) -> str:
        return f"{self.processor:8.2f} {self.clock:8.2f} {self.rows:14,} {self.megabytes:8,.0f}"


def cost(client: Client, since: datetime, mark: str) -> Cost:
    """Cost of the statements since an instant that carry a mark."""
    client.command("system flush logs")
    row = client.query(_COST, parameters={"since": since, "mark": mark}).result_rows[0]
    return Cost(float(row[0]), float(row[1]), int(row[2]), float(row[3]))


def server_now(client: Client) -> datetime:
    now = client.query("select now64(6, 'UTC')").result_rows[0][0]
    assert isinstance(now, datetime)
    return now if now.tzinfo else now.replace(tzinfo=UTC)


def of_model(client: Client, since: datetime, model: str) -> Cost:
    return cost(client, since, f'"node_id": "model.apex.{model}"')


def subscribe(client: Client) -> None:
    """A subscription of each customer, with a trial of 14 days."""
    terms = {
        "customer_id": "customer", "plan_type": "'indie'", "status": "'active'", "base_price_cents": "9900",
        "currency": "'usd'", "included_impressions": "1000000", "snapshot_at": "begun",
    }  # fmt: skip
    tables = {
        "subscriptions": {
            "id": "concat('sub_', customer)", "started_at": "begun", "trial_end": "begun + 14 * 86400",
            "current_period_start": "begun", "current_period_end": "begun",
        },
        "subscription_changes": {
            "id": "toInt64(sipHash64(customer) % 1000000000000)", "effective_at": "begun",
            "subscription_id": "concat('sub_', customer)",
        },
    }  # fmt: skip
    for table, own in tables.items():
        columns = terms | own
        client.command(_SUBSCRIPTIONS.format(
            table=table, columns=", ".join(columns), values=", ".join(columns.values()),
            first=END - SPAN, customers=CUSTOMERS,
        ))  # fmt: skip


def rebuild(models: Models, stored: int) -> float | None:
    """Build everything anew and by bare queries; the speed kept, by the processors' time.

    Beyond 50 M events None: what the bare queries spill and write does not fit onto the disk any more.
    """
    client = models.client
    since = server_now(client)
    models.run("run", "--full-refresh", "--select", *BEFORE, *INCREMENTAL, as_of=AS_OF)
    print(f"\n{stored / 1e6:.0f} M events, everything built anew, and by a bare query into a plain table:")
    print(f"  {'':20} {'CPU s':>8} {'clock s':>8} {'rows read':>14} {'peak MB':>8}   bare {'CPU s':>8} kept")
    ours = bare = 0.0
    for model, query in _BARE.items():
        built = of_model(client, since, model)
        if stored > BARE_AT_MOST:
            print(f"  {model:20} {built}")
            continue
        began = server_now(client)
        client.command(
            f"create table default.bare engine = MergeTree order by tuple() as {query}",
            # Both at once must fit into what one query may take, however much there is.
            settings={"max_bytes_before_external_group_by": 1_000_000_000,
                      "max_bytes_before_external_sort": 500_000_000},
        )  # fmt: skip
        plain = cost(client, began, "default.bare")
        client.command("drop table default.bare sync")
        print(f"  {model:20} {built}   {plain.processor:13.2f} {plain.processor / built.processor:4.2f}")
        ours, bare = ours + built.processor, bare + plain.processor
    if not ours:
        return None
    print(f"  {'all':20} {ours:8.2f} {'':48}{bare:8.2f} {bare / ours:4.2f}")
    return bare / ours


def additions(models: Models, stored: int) -> float:
    """Add events a few times; the median CPU seconds of a run of all incremental models."""
    client = models.client
    runs: list[dict[str, Cost]] = []
    for number in range(ADDITIONS):
        land(
            client, stored + number * ADDED, ADDED, END + timedelta(hours=number, seconds=1),
            timedelta(minutes=30), customers=CUSTOMERS, late_seconds=ONE_PER_CENT_LATE,
        )  # fmt: skip
        since = server_now(client)
        models.run("run", "--select", *INCREMENTAL, as_of=AS_OF)
        runs.append({model: of_model(client, since, model) for model in INCREMENTAL})
    counted = client.command("select sum(event_count) from marts.usage_daily")
    assert counted == stored + ADDITIONS * ADDED
    print(f"{stored / 1e6:.0f} M events, {ADDED:,} more, median of {ADDITIONS} runs:")
    for model in INCREMENTAL:
        middle = sorted((run[model] for run in runs), key=lambda one: one.processor)[ADDITIONS // 2]
        print(f"  {model:20} {middle}")
    totals = [sum(one.processor for one in run.values()) for run in runs]
    clocks = [sum(one.clock for one in run.values()) for run in runs]
    print(f"  {'all':20} {statistics.median(totals):8.2f} {statistics.median(clocks):8.2f}")
    return statistics.median(totals)


def sizes(client: Client) -> None:
    """Bytes on disk of an event and of a row in each table."""
    tables = client.query(
        """
        select concat(database, '.', table) as name, sum(rows), sum(bytes_on_disk),
            sum(primary_key_bytes_in_memory_allocated)
        from system.parts
        where active and (database, table) in (
            ('raw', 'usage_events'), ('intermediate', 'int_usage_events'),
            ('intermediate', 'int_usage_arrivals'),
            ('marts', 'usage_daily'), ('marts', 'usage_hourly'), ('marts', 'usage_by_period')
        )
        group by name order by name
        """
    ).result_rows
    for name, rows, size, index in tables:
        print(
            f"  {name:34} {rows:13,} rows {size / max(1, rows):6.1f} bytes each, index {index / 1e6:.1f} MB"
        )


def measure(models: Models, millions: int) -> tuple[float, float | None]:
    """CPU seconds of an addition, and the share of the bare query's speed that a rebuild keeps."""
    client, stored = models.client, millions * 1_000_000
    models.drop_all()
    for table in ("usage_events", "subscriptions", "subscription_changes"):
        client.command(f"truncate table raw.{table}")
    models.build(*INCREMENTAL, as_of=AS_OF)
    subscribe(client)
    land(client, 0, stored, END - SPAN, SPAN, customers=CUSTOMERS, late_seconds=ONE_PER_CENT_LATE)
    kept = rebuild(models, stored)
    sizes(client)
    return additions(models, stored), kept


@pytest.mark.parametrize("largest", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_cost_follows_the_change_and_not_the_history(largest: int, models: Models) -> None:
    (small, small_kept), (large, large_kept) = (measure(models, millions) for millions in (5, largest))
    print(f"an addition costs {large / small:.2f} times as much at {largest} M as at 5 M")
    assert large <= MOST_TIMES_DEARER * small
    assert all(kept >= LEAST_SHARE_OF_BARE_SPEED for kept in (small_kept, large_kept) if kept is not None)
