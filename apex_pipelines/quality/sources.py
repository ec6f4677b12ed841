"""What is looked at of each source from outside: the newest rows, with what its rules ask made into columns.

Belongs here: a bounded extract a source. Does not belong here: what its rows must be like (`suites.py`), and
rules of whole tables, which are dbt tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl
from clickhouse_connect.driver.client import Client

from apex_pipelines.quality import suites
from apex_pipelines.settings import Settings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

_TELEMETRY = """
select
    customer_id, event_id, metric_type, quantity, event_time, toString(JSONType(metadata)) as metadata_type,
    (quantity < 0) = (corrects_event_id != '') and (corrects_event_id = '') = (correction_reason = '')
        as is_correction_whole,
    if(historical, null, dateDiff('second', event_time, accepted_at)) as seconds_late
from raw.usage_events
order by loaded_at desc
limit {rows:UInt32}
"""
_CUSTOMERS = """
select
    id as customer_id, name, email, source, country, company_size, created_at,
    toUnixTimestamp64Milli(created_at) / 1000 as created_at_unix
from raw.customers final
order by copy_number desc
limit {rows:UInt32}
"""
_SUBSCRIPTIONS = """
select
    id as subscription_id, customer_id, status, base_price_cents, currency, included_impressions,
    started_at, toUnixTimestamp64Milli(started_at) / 1000 as started_at_unix,
    (status = 'canceled') = (cancelled_at is not null) as is_end_known
from raw.subscriptions final
order by copy_number desc
limit {rows:UInt32}
"""
_PAYMENTS = """
select
    id as payment_id, customer_id, invoice_id, attempt_number, status, amount_cents, currency, failure_code,
    occurred_at, toUnixTimestamp64Milli(occurred_at) / 1000 as occurred_at_unix,
    (status = 'failed') = (failure_code is not null) as is_failure_explained
from raw.payments final
order by copy_number desc
limit {rows:UInt32}
"""
# Each fetch, also one that a later fetch replaces; amounts of all types of objects that have some.
_STRIPE_OBJECTS = """
select
    id, object, api_version, fetched_at,
    JSONExtractString(payload, 'id') = id and JSONExtractString(payload, 'object') = object
        as is_what_it_says,
    not JSONHas(payload, 'livemode') or JSONExtractBool(payload, 'livemode') = livemode as is_of_its_mode,
    JSONExtract(payload, 'currency', 'Nullable(String)') as currency,
    arrayMax(
        arrayMap(
            field -> abs(JSONExtractInt(payload, field)),
            ['amount', 'amount_due', 'amount_paid', 'amount_refunded', 'total', 'unit_amount']
        )
    ) as largest_amount_cents,
    toUnixTimestamp64Milli(fetched_at) / 1000 as fetched_at_unix
from raw.stripe_objects
order by fetched_at desc
limit {rows:UInt32}
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One table of `raw` whose rows come from outside.

    Attributes
    ----------
    extract : str
        A query of its newest rows, at most `{rows}`.
    named_by : tuple of str
        Columns by which a person finds an offending row.
    rules : callable
        From the settings and the present instant to expectations by the name of the rule.
    """

    table: str
    extract: str
    named_by: tuple[str, ...]
    rules: Callable[[Settings, datetime], Mapping[str, Expectation]]

    def newest_rows(self, client: Client, rows: int) -> pl.DataFrame:
        return pl.DataFrame(client.query_arrow(self.extract, parameters={"rows": rows}, use_strings=True))


SOURCES = (
    Source("usage_events", _TELEMETRY, ("customer_id", "event_id", "event_time"), suites.telemetry),
    Source("customers", _CUSTOMERS, ("customer_id", "created_at"), suites.customers),
    Source(
        "subscriptions",
        _SUBSCRIPTIONS,
        ("customer_id", "subscription_id", "started_at"),
        suites.subscriptions,
    ),
    Source("payments", _PAYMENTS, ("customer_id", "payment_id", "occurred_at"), suites.payments),
    Source("stripe_objects", _STRIPE_OBJECTS, ("object", "id", "fetched_at"), suites.stripe_objects),
)
