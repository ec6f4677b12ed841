{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['customer_id', 'subscription_id', 'period_start'],
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'subscription_id', 'period_start', 'metric_type'],
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        pre_hook=['{{ end_leftover_statements() }}', "{{ begin_reading('usage_by_period', 'usage_daily') }}"],
        post_hook=['{{ delete_former_periods() }}', "{{ finish_reading('usage_by_period') }}"],
    )
}}

with periods as (

    select
        period.customer_id as customer_id,
        period.subscription_id as subscription_id,
        period.period_start as period_start,
        period.period_end as period_end,
        period.is_trial as is_trial,
        period.is_ended as is_ended,
        metric.metric_type as metric_type,
        nullIf(allowance.included_quantity, 0) as included
    from {{ ref('int_billing_periods') }} as period
    cross join (
        select metric_type
        from {{ ref('metric_catalogue') }}
        where kind = 'usage'
    ) as metric
    left join {{ ref('int_period_allowances') }} as allowance
        on
            period.subscription_id = allowance.subscription_id
            and period.period_start = allowance.period_start
            and metric.metric_type = allowance.metric_type

),

{% if is_incremental() %}
touched_periods as (

    -- Those with a day that was summed anew since the stored mark.
    select period.subscription_id as subscription_id, period.period_start as period_start
    from {{ ref('int_billing_periods') }} as period
    inner join (
        select distinct customer_id, usage_date
        from {{ ref('usage_daily') }}
        where processed_at > {{ stored_watermark('usage_by_period') }}
    ) as day
        on period.customer_id = day.customer_id
    where
        day.usage_date >= toDate(period.period_start, 'UTC')
        and day.usage_date <= toDate(period.period_end, 'UTC')

),

changed_periods as (

    -- And those that are new or of which anything but use is no longer what is stored. As one value, which is
    -- computed once however often it is read.
    select arrayJoin(assumeNotNull((
        select groupUniqArray((customer_id, subscription_id, period_start, period_end))
        from periods
        where
            (subscription_id, period_start) in (select subscription_id, period_start from touched_periods)
            or sipHash64(
                customer_id, subscription_id, period_start, period_end, is_trial, is_ended, metric_type,
                ifNull(included, 0)
            ) not in (
                select
                    sipHash64(
                        customer_id, subscription_id, period_start, period_end, is_trial, is_ended,
                        toString(metric_type), ifNull(included_quantity, 0)
                    )
                from {{ this }}
            )
    ))) as period

),
{% else %}
changed_periods as (

    select (customer_id, subscription_id, period_start, period_end) as period
    from {{ ref('int_billing_periods') }}

),
{% endif %}

bounds as (

    -- Days that lie inside as a whole: from first_day on, before last_cut_day.
    select
        period.1 as customer_id,
        period.2 as subscription_id,
        period.3 as period_start,
        period.4 as period_end,
        toDate(period_start, 'UTC') as first_cut_day,
        toDate(period_end, 'UTC') as last_cut_day,
        first_cut_day + (toStartOfDay(period_start, 'UTC') != period_start) as first_day
    from changed_periods

),

period_months as (

    -- Days meet their period by calendar month, so that a customer's day is not tried with all of the periods.
    select
        *,
        arrayJoin(arrayMap(
            months -> addMonths(toStartOfMonth(first_cut_day), months),
            range(toUInt64(1 + dateDiff('month', first_cut_day, last_cut_day)))
        )) as month
    from bounds

),

cut_days as (

    -- Days of which a period has a part only.
    select
        *,
        arrayJoin(arrayDistinct(arrayConcat(
            if(first_day = first_cut_day, [], [first_cut_day]),
            if(toStartOfDay(period_end, 'UTC') = period_end, [], [last_cut_day])
        ))) as cut_day
    from bounds

),

usage_inside as (

    select
        period_months.subscription_id as subscription_id,
        period_months.period_start as period_start,
        toString(daily.metric_type) as metric_type,
        sum(daily.quantity) as quantity
    from {{ ref('usage_daily') }} as daily
    inner join period_months
        on daily.customer_id = period_months.customer_id and toStartOfMonth(daily.usage_date) = period_months.month
    where
        daily.usage_date >= period_months.first_day
        and daily.usage_date < period_months.last_cut_day
        {% if is_incremental() %}
        and daily.customer_id in (select customer_id from bounds)
        and daily.usage_date >= (select min(first_cut_day) from bounds)
        and daily.usage_date <= (select max(last_cut_day) from bounds)
        {% endif %}
    group by subscription_id, period_start, metric_type

    union all

    select
        cut_days.subscription_id as subscription_id,
        cut_days.period_start as period_start,
        toString(event.metric_type) as metric_type,
        sum(event.quantity) as quantity
    from {{ ref('int_usage_events') }} as event
    inner join cut_days
        on event.customer_id = cut_days.customer_id and event.usage_date = cut_days.cut_day
    where
        event.event_time >= cut_days.period_start
        and event.event_time < cut_days.period_end
        -- What usage_daily has not counted yet waits here too.
        and event.processed_at <= {{ begun_watermark('usage_by_period') }}
        {% if is_incremental() %}
        and (event.customer_id, event.usage_date) in (select customer_id, cut_day from cut_days)
        {% endif %}
    group by subscription_id, period_start, metric_type

),

usage_by_metric as (

    select subscription_id, period_start, metric_type, sum(quantity) as quantity
    from usage_inside
    group by subscription_id, period_start, metric_type

)

select
    periods.customer_id as customer_id,
    periods.subscription_id as subscription_id,
    periods.period_start as period_start,
    periods.period_end as period_end,
    periods.is_trial as is_trial,
    periods.is_ended as is_ended,
    toLowCardinality(periods.metric_type) as metric_type,
    usage.quantity as quantity,
    periods.included as included_quantity,
    if(isNull(periods.included), 0, greatest(0, usage.quantity - assumeNotNull(periods.included))) as overage_quantity,
    if(isNull(periods.included), 0, usage.quantity / assumeNotNull(periods.included)) as used_ratio
from periods
left join usage_by_metric as usage
    on
        periods.subscription_id = usage.subscription_id
        and periods.period_start = usage.period_start
        and periods.metric_type = usage.metric_type
{% if is_incremental() %}
where (periods.subscription_id, periods.period_start) in (select subscription_id, period_start from bounds)
{% endif %}
