{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['customer_id', 'subscription_id', 'period_start', 'metric_type', 'slot_start'],
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'slot_start', 'metric_type', 'subscription_id', 'period_start'],
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        pre_hook=['{{ end_leftover_statements() }}', "{{ begin_reading('metered_usage', 'usage_daily') }}"],
        post_hook="{{ finish_reading('metered_usage') }}",
    )
}}

with periods as (

    select
        customer_id,
        subscription_id,
        period_start,
        period_end,
        toDate(period_start, 'UTC') as first_date,
        toDate(subtractMicroseconds(period_end, 1), 'UTC') as last_date
    from {{ ref('int_billing_periods') }}

),

usage_metrics as (

    select metric_type
    from {{ ref('metric_catalogue') }}
    where kind = 'usage'

),

{% if is_incremental() %}
-- New ones, and those of which an end is not the stored one: each has a row, at least that of its first slot.
changed_periods as (

    select *
    from periods
    where
        (customer_id, subscription_id, period_start, period_end) not in (
            select customer_id, subscription_id, period_start, period_end from {{ this }}
        )

),

touched_days as (

    select distinct customer_id, usage_date
    from {{ ref('usage_daily') }}
    where processed_at > {{ stored_watermark('metered_usage') }}

),

-- As one value, which is computed once however often it is read.
dates_to_count as (

    select arrayJoin(assumeNotNull((
        select
            groupUniqArray((
                dates.customer_id, dates.subscription_id, dates.period_start, dates.period_end, dates.usage_date
            ))
        from (
            select
                customer_id,
                subscription_id,
                period_start,
                period_end,
                arrayJoin(arrayMap(day -> first_date + day, range(toUInt64(1 + last_date - first_date)))) as usage_date
            from changed_periods
            union all
            select
                period.customer_id as customer_id,
                period.subscription_id as subscription_id,
                period.period_start as period_start,
                period.period_end as period_end,
                touched.usage_date as usage_date
            from periods as period
            inner join touched_days as touched on period.customer_id = touched.customer_id
            where touched.usage_date between period.first_date and period.last_date
        ) as dates
    ))) as date

),
{% else %}
changed_periods as (

    select * from periods

),

dates_to_count as (

    select
        (
            customer_id, subscription_id, period_start, period_end,
            arrayJoin(arrayMap(day -> first_date + day, range(toUInt64(1 + last_date - first_date))))
        ) as date
    from changed_periods

),
{% endif %}

slots as (

    select
        date.1 as customer_id,
        date.2 as subscription_id,
        date.3 as period_start,
        date.4 as period_end,
        date.5 as usage_date,
        greatest(toDateTime64(usage_date, 6, 'UTC'), period_start) as first_instant,
        least(toDateTime64(usage_date + 1, 6, 'UTC'), period_end) as slot_end,
        first_instant = toDateTime64(usage_date, 6, 'UTC') and slot_end = toDateTime64(usage_date + 1, 6, 'UTC')
            as is_whole_day,
        {{ slot_start('first_instant') }} as slot_start
    from dates_to_count

),

counted as (

    select
        slots.customer_id as customer_id,
        slots.subscription_id as subscription_id,
        slots.period_start as period_start,
        toString(daily.metric_type) as metric_type,
        slots.slot_start as slot_start,
        (true, slots.period_end, slots.slot_end) as ends,
        daily.quantity as quantity
    from {{ ref('usage_daily') }} as daily
    inner join slots
        on daily.customer_id = slots.customer_id and daily.usage_date = slots.usage_date
    where
        slots.is_whole_day
        and daily.metric_type in (select metric_type from usage_metrics)
        {% if is_incremental() %}
        and daily.customer_id in (select customer_id from slots)
        and daily.usage_date >= (select min(usage_date) from slots)
        {% endif %}

    union all

    select
        slots.customer_id,
        slots.subscription_id,
        slots.period_start,
        toString(event.metric_type),
        slots.slot_start,
        (true, slots.period_end, slots.slot_end),
        event.quantity
    from {{ ref('int_usage_events') }} as event
    inner join slots
        on event.customer_id = slots.customer_id and event.usage_date = slots.usage_date
    where
        not slots.is_whole_day
        and event.event_time >= slots.first_instant
        and event.event_time < slots.slot_end
        and event.metric_type in (select metric_type from usage_metrics)
        -- What usage_daily has not counted yet waits here too.
        and event.processed_at <= {{ begun_watermark('metered_usage') }}
        and (event.customer_id, event.usage_date) in (
            select customer_id, usage_date
            from slots
            where not is_whole_day
        )

    union all

    -- The first slot of each period is there whether used or not.
    select
        period.customer_id,
        period.subscription_id,
        period.period_start,
        metric.metric_type,
        {{ slot_start('period.period_start') }},
        (true, period.period_end, least(toDateTime64(period.first_date + 1, 6, 'UTC'), period.period_end)),
        toInt64(0)
    from changed_periods as period
    cross join usage_metrics as metric

    {% if is_incremental() %}
    union all

    -- So that a slot of which nothing is left, since its period has other bounds or is no more, becomes 0. A row
    -- that was simply deleted would never reach who reads what changed.
    select
        customer_id,
        subscription_id,
        period_start,
        toString(metric_type),
        slot_start,
        (false, period_end, slot_end),
        toInt64(0)
    from {{ this }}
    where
        quantity != 0
        and (customer_id, subscription_id, period_start, period_end) not in (
            select customer_id, subscription_id, period_start, period_end from periods
        )
    {% endif %}

),

slot_usage as (

    select
        customer_id,
        subscription_id,
        period_start,
        metric_type,
        slot_start,
        max(counted.ends) as ends,
        ends.2 as period_end,
        ends.3 as slot_end,
        sum(counted.quantity) as quantity
    from counted
    group by customer_id, subscription_id, period_start, metric_type, slot_start

)

select
    customer_id,
    subscription_id,
    period_start,
    period_end,
    toLowCardinality(metric_type) as metric_type,
    slot_start,
    slot_end,
    quantity,
    {{ began_reading_at('metered_usage') }} as processed_at
from slot_usage
{% if is_incremental() %}
where
    sipHash64(customer_id, subscription_id, period_start, period_end, metric_type, slot_start, slot_end, quantity)
    not in (
        select
            sipHash64(
                customer_id, subscription_id, period_start, period_end, toString(metric_type), slot_start, slot_end,
                quantity
            )
        from {{ this }}
        where customer_id in (select customer_id from slots)
    )
{% endif %}
