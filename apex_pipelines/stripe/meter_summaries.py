"""What Stripe's meters add up to, by customer, metric and window.

Belongs here: asking for it, and landing it in `raw.stripe_meter_summaries`. Does not belong here: comparing
it with what was counted (`marts.stripe_reconciliation`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
import stripe
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT
from apex_pipelines.platform.clock import Clock
from apex_pipelines.stripe import links, meter_ledger
from apex_pipelines.stripe.bootstrap import METER, meter_name
from apex_pipelines.stripe.meter_ledger import Mark
from apex_pipelines.stripe.meter_rules import SlotKey

# Use may come 35 days late, and changes nothing at Stripe after that.
LOOK_BACK = timedelta(days=40)
# Stripe adds up a little later than it accepts: what is not there yet is asked for again after these seconds.
_PATIENCE = (2.0, 5.0)
_COLUMNS = [
    "livemode", "customer_id", "metric_type", "period_start", "window_start", "window_end", "quantity",
    "counted_until", "synced_at", "fetched_at",
]  # fmt: skip
_PERIODS = """
    select distinct customer_id, toString(metric_type), period_start, period_end
    from marts.usage_by_period
    where period_end > {since:DateTime64(6, 'UTC')} and period_start < {now:DateTime64(6, 'UTC')}
    order by customer_id, period_start, metric_type
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to a meter; the window is the period in whole minutes."""

    customer_id: str
    stripe_customer_id: str
    metric_type: str
    meter_id: str
    period_start: datetime
    window: tuple[datetime, datetime]


def meter_total(
    client: stripe.StripeClient, meter_id: str, stripe_customer_id: str, window: tuple[datetime, datetime]
) -> int:
    """Sum of a customer's meter events with timestamps from the start to before the end of `window`.

    Both are whole minutes, UTC. Of a customer that Stripe does not have (any more) it is 0.
    """
    start, end = window
    try:
        page = client.v1.billing.meters.event_summaries.list(
            meter_id,
            {
                "customer": stripe_customer_id,
                "start_time": int(start.timestamp()),
                "end_time": int(end.timestamp()),
                "limit": 100,
            },
        )
        return sum(round(summary.aggregated_value) for summary in page.auto_paging_iter())
    except stripe.InvalidRequestError as error:
        if error.code == "resource_missing" and error.param == "customer":
            return 0
        raise


def land_summaries(
    engine: sa.Engine,
    warehouse: Client,
    client: stripe.StripeClient,
    clock: Clock,
    *,
    livemode: bool,
    customer_id: str | None = None,
    concurrency: int = 8,
    wait: Callable[[float], object] = time.sleep,
) -> int:
    """Ask for each period that runs or ended lately, of linked customers, and land the answers; how many.

    What differs from the ledger is asked for again before it is believed.
    """
    with engine.connect() as connection:
        mark = meter_ledger.read_mark(connection, livemode=livemode)
        asked = _questions(connection, warehouse, clock.now(), livemode=livemode, customer_id=customer_id)
        since = min((each.window[0] for each in asked), default=clock.now())
        told = meter_ledger.sent_since(connection, since, livemode=livemode)
    expected = _by_window(asked, told)

    def ask(each: Asked) -> tuple[datetime, int]:
        for seconds in (0.0, *_PATIENCE):
            if seconds:
                wait(seconds)
            fetched_at = clock.now()
            total = meter_total(client, each.meter_id, each.stripe_customer_id, each.window)
            if total == expected.get(each, 0):
                break
        return fetched_at, total

    with ThreadPoolExecutor(concurrency, thread_name_prefix="meter-summaries") as pool:
        answers = list(pool.map(ask, asked))
    never = datetime(1970, 1, 1, tzinfo=UTC)
    mark = mark or Mark(never, never)
    rows = [
        [
            livemode, each.customer_id, each.metric_type, each.period_start, *each.window, total,
            mark.counted_until, mark.synced_at, fetched_at,
        ]
        for each, (fetched_at, total) in zip(asked, answers, strict=True)
    ]  # fmt: skip
    if rows:
        table = "raw.stripe_meter_summaries"
        warehouse.insert(table, rows, column_names=_COLUMNS, settings=DURABLE_INSERT)
    return len(rows)


def _questions(
    connection: sa.Connection, warehouse: Client, now: datetime, *, livemode: bool, customer_id: str | None
) -> list[Asked]:
    customers = links.customer_links(connection, livemode=livemode)
    meters = links.stripe_ids(connection, METER, livemode=livemode)
    parameters = {"since": f"{now - LOOK_BACK:%F %T.%f}", "now": f"{now:%F %T.%f}"}
    this_minute = now.replace(second=0, microsecond=0)
    found = []
    for customer, metric, start, end in warehouse.query(_PERIODS, parameters=parameters).result_rows:
        period_start, period_end = start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
        linked = customers.get(customer)
        meter_id = meters.get(meter_name(metric))
        if linked is None or meter_id is None or customer_id not in (None, customer):
            continue
        window = (
            period_start.replace(second=0, microsecond=0),
            min(period_end.replace(second=0, microsecond=0), this_minute),
        )
        if period_end >= linked.linked_at and window[0] < window[1]:
            found.append(Asked(customer, linked.stripe_id, metric, meter_id, period_start, window))
    return found


def _by_window(asked: Iterable[Asked], told: Iterable[tuple[SlotKey, int]]) -> dict[Asked, int]:
    """What the ledger says of each window."""
    by_customer = defaultdict(list)
    for each in asked:
        by_customer[each.customer_id, each.metric_type].append(each)
    expected: dict[Asked, int] = defaultdict(int)
    for (customer, metric, start), quantity in told:
        for each in by_customer.get((customer, metric), ()):
            if each.window[0] <= start < each.window[1]:
                expected[each] += quantity
    return expected
