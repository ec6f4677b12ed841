{{ config(order_by=['customer_id']) }}

with life_metrics as (

    select metric_type
    from {{ ref('metric_catalogue') }}
    where kind = 'life'

),

life_events as (

    -- They are few: the daily sums tell on which customer-days to look for them among all events.
    select customer_id, event_id, metric_type, dimension, quantity, event_time
    from {{ ref('int_usage_events') }}
    where
        (customer_id, usage_date) in (
            select customer_id, usage_date
            from {{ ref('usage_daily') }}
            where metric_type in (select metric_type from life_metrics) and usage_date <= {{ as_of_date() }}
        )
        and metric_type in (select metric_type from life_metrics)

),

first_downloads as (

    select
        customer_id,
        mapSort(mapFromArrays(groupArray(platform), groupArray(first_at))) as first_downloads
    from (
        select customer_id, dimension as platform, min(event_time) as first_at
        from life_events
        where metric_type = 'sdk_downloads' and quantity > 0 and dimension != ''
        group by customer_id, dimension
    )
    group by customer_id

),

totals as (

    select
        customer_id,
        sumIf(quantity, metric_type = 'teammates_invited') as teammates_invited,
        countIf(metric_type = 'nps_scores') as nps_answers,
        argMaxIf(quantity, (event_time, event_id), metric_type = 'nps_scores') as newest_score,
        maxIf(event_time, metric_type = 'nps_scores') as newest_answer_at
    from life_events
    group by customer_id

)

select
    totals.customer_id as customer_id,
    totals.teammates_invited as teammates_invited,
    if(totals.nps_answers > 0, totals.newest_score, null) as nps_score,
    if(totals.nps_answers > 0, totals.newest_answer_at, null) as nps_answered_at,
    first_downloads.first_downloads as first_downloads
from totals
left join first_downloads
    on totals.customer_id = first_downloads.customer_id
