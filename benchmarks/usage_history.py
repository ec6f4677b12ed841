"""Years of use by many customers, written straight into the tables as the models leave them.

Belongs here: rows that look like a platform's. Does not belong here: measuring.

Every figure of a row is a hash of its number, so that a later call can repeat an earlier event. Customers
differ in size: the largest of 500 has an eighth of all events.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.events import microseconds

CUSTOMERS = 500
YEAR = timedelta(days=365)
END = datetime(2026, 6, 1, tzinfo=UTC)
_CHUNK_EVENTS = 5_000_000
_ROWS_AT_ONCE = 10_000  # rows with one time of loading, as those of one insert
# How long an event waited in a device: mostly for minutes, at most 3 days.
WAITED = "pow(sipHash64(number, 5) / 18446744073709551616., 4) * 259200"
# One of a hundred is late, by up to 35 days; the others by less than a minute.
ONE_PER_CENT_LATE = (
    "if(sipHash64(number, 5) % 100 = 0, sipHash64(number, 6) % (35 * 86400), sipHash64(number, 6) % 60)"
)

# Sizes follow the third power of a uniform number.
_ROWS = """
select
    concat('cus_', leftPad(toString(toUInt32(floor(
        {customers} * pow(sipHash64(number, 1) / 18446744073709551616., 3)
    ))), 32, '0')) as customer_id,
    lower(hex(sipHash128(number, 2))) as event_id,
    arrayElement(
        ['impressions', 'impressions', 'impressions', 'api_calls', 'data_transfer', 'mediated_revenue',
         'sdk_errors', 'feature_used'],
        1 + sipHash64(number, 3) % 8
    ) as metric_type,
    toInt64(sipHash64(number, 4) % 1000) as quantity,
    toDateTime64(
        loaded_at - toIntervalSecond(toUInt32({late_seconds})),
        3, 'UTC'
    ) as event_time,
    loaded_at as accepted_at,
    '{{}}' as metadata,
    '' as corrects_event_id,
    '' as correction_reason,
    concat('batch-', toString(intDiv(number, {at_once}))) as batch_id,
    toUInt32(number % {at_once}) as batch_row,
    fromUnixTimestamp64Micro(
        toInt64({first_us} + intDiv(number - {start}, {at_once}) * {step_us}), 'UTC'
    ) as loaded_at
from numbers({start}, {count})
"""


def customer_id(number: int) -> str:
    """Id of a customer; number 0 has the most events."""
    return f"cus_{number:032d}"


def land(
    client: Client,
    start: int,
    count: int,
    first: datetime,
    span: timedelta,
    *,
    customers: int = CUSTOMERS,
    late_seconds: str = WAITED,
) -> None:
    """Events number `start` and following into the landing log, loaded over `span` from `first` on.

    Parameters
    ----------
    late_seconds : str
        SQL of how long before its loading the event `number` happened.
    """
    step = max(timedelta(microseconds=1), span * _ROWS_AT_ONCE / max(1, count))
    for chunk in range(0, count, _CHUNK_EVENTS):
        begin = first + step * (chunk // _ROWS_AT_ONCE)
        rows = _ROWS.format(
            customers=customers,
            late_seconds=late_seconds,
            start=start + chunk,
            count=min(_CHUNK_EVENTS, count - chunk),
            at_once=_ROWS_AT_ONCE,
            first_us=microseconds(begin),
            step_us=step // timedelta(microseconds=1),
        )
        client.command(
            f"""
            insert into raw.usage_events (
                customer_id, event_id, metric_type, quantity, event_time, accepted_at, metadata,
                corrects_event_id, correction_reason, batch_id, batch_row, loaded_at
            )
            {rows}
            """
        )


def count_landed(client: Client) -> None:
    """What `int_usage_events` stores of the landing log, and its marks, without the search for repeats."""
    months = client.query(
        "select distinct toYYYYMM(loaded_at) as month from raw.usage_events order by month"
    ).result_rows
    for (month,) in months:
        client.command(
            f"""
            insert into intermediate.int_usage_events (
                customer_id, event_id, metric_type, quantity, event_time, accepted_at, metadata, dimension,
                corrects_event_id, correction_reason, batch_id, batch_row, loaded_at, event_key, usage_date,
                processed_at, known_on
            )
            select
                customer_id, event_id, metric_type, quantity, event_time, accepted_at, metadata, '',
                corrects_event_id, correction_reason, batch_id, batch_row, loaded_at,
                sipHash64(customer_id, event_id), toDate(event_time, 'UTC'), now64(6, 'UTC'),
                toDate(accepted_at, 'UTC')
            from raw.usage_events
            where toYYYYMM(loaded_at) = {month}
            settings max_partitions_per_insert_block = 200
            """
        )
    client.command(
        """
        insert into intermediate.model_watermarks (model, state, watermark, rows_before)
        select
            'int_usage_events', 'stored', max(loaded_at) as newest,
            countIf(loaded_at > (select max(loaded_at) from raw.usage_events) - interval 1 hour)
        from raw.usage_events
        union all
        select 'int_usage_events.processed_at', 'stored', max(processed_at), 0
        from intermediate.int_usage_events
        """
    )
