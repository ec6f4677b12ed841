"""What it costs to count each event once, by how much is new and by how much was counted before.

The time of the one statement that searches the stored events for the ids of the new ones, as the server
logged it, without the start of dbt.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clock import ManualClock
from tests.warehouse_models.conftest import Models

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

CUSTOMERS = 500
STORED = (1_000_000, 5_000_000, 20_000_000)
NEW = (1_000, 100_000)
ROWS_PER_INSERT = 1_000_000
# Ids as random as clients make them; the day follows the number, so that a year of days is filled.
_INSERT = """
insert into raw.usage_events
    (customer_id, event_id, metric_type, quantity, event_time, accepted_at, metadata, corrects_event_id,
     correction_reason, batch_id, batch_row, loaded_at)
select
    concat('cus_', leftPad(toString(number % {customers:UInt32}), 32, '0')),
    toString(reinterpretAsUUID(concat(reinterpretAsFixedString(sipHash64(number)),
                                      reinterpretAsFixedString(sipHash64(number, 1))))),
    'impressions', 1, fromUnixTimestamp64Milli({until_ms:Int64} - (number % 31_536_000) * 1000, 'UTC'),
    now64(6, 'UTC'), '{{"platform":"ios","country":"DE"}}', '', '',
    concat('bench-', toString({first:UInt64})), toUInt32(number - {first:UInt64}), now64(6, 'UTC')
from numbers({first:UInt64}, {rows:UInt64})
"""
_STATEMENT = """
select query_duration_ms, read_rows, read_bytes, memory_usage
from system.query_log
where type = 'QueryFinish' and query_kind = 'Insert' and has(tables, 'intermediate.int_usage_events')
    and written_rows > 0 and query not like '%model_watermarks (model%'
order by event_time_microseconds desc
limit 1
"""


class Events:
    """Lands events with numbers that go on and on, so that none is a repeat."""

    def __init__(self, warehouse: Client, clock: ManualClock) -> None:
        self._warehouse = warehouse
        self._until_ms = int((clock.now() - timedelta(days=1)).timestamp() * 1000)
        self.landed = 0

    def land(self, rows: int) -> None:
        while rows > 0:
            part = min(rows, ROWS_PER_INSERT)
            parameters = {
                "customers": CUSTOMERS, "until_ms": self._until_ms, "first": self.landed, "rows": part
            }  # fmt: skip
            self._warehouse.command(_INSERT, parameters=parameters)
            self.landed += part
            rows -= part


def test_the_cost_of_counting_once(models: Models, warehouse: Client, clock: ManualClock) -> None:
    events = Events(warehouse, clock)
    print("\none run of int_usage_events:")
    print(f"  {'stored':>12} {'new':>9} {'seconds':>9} {'rows read':>12} {'MB read':>9} {'peak MB':>9}")
    for stored in STORED:
        events.land(stored - events.landed)
        models.build("int_usage_events")
        for new in NEW:
            before = events.landed
            events.land(new)
            models.build("int_usage_events")
            warehouse.command("system flush logs")
            milliseconds, rows, size, memory = warehouse.query(_STATEMENT).result_rows[0]
            print(
                f"  {before:12,} {new:9,} {milliseconds / 1000:9.2f} {rows:12,} {size / 1e6:9,.0f}"
                f" {memory / 1e6:9,.0f}"
            )
        counted = warehouse.command("select count() from intermediate.int_usage_events")
        assert counted == events.landed
