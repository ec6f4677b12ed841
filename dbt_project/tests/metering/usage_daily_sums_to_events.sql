-- Daily use is the sum of the events: by metric for each customer of the newest run, and by count for all.
-- Names the customers that differ; an empty name stands for a difference in the count of all.
with newest_customers as (

    select distinct customer_id
    from {{ ref('int_usage_events') }}
    where processed_at > {{ previous_watermark('int_usage_events.processed_at') }}

),

by_event as (

    select customer_id, metric_type, sum(quantity) as quantity, count() as event_count
    from {{ ref('int_usage_events') }}
    where customer_id in (select customer_id from newest_customers)
    group by customer_id, metric_type

    union all

    select '' as customer_id, '' as metric_type, 0 as quantity, count() as event_count
    from {{ ref('int_usage_events') }}

),

by_day as (

    select customer_id, metric_type, sum(quantity) as quantity, sum(event_count) as event_count
    from {{ ref('usage_daily') }}
    where customer_id in (select customer_id from newest_customers)
    group by customer_id, metric_type

    union all

    select '' as customer_id, '' as metric_type, 0 as quantity, sum(event_count) as event_count
    from {{ ref('usage_daily') }}

)

select
    coalesce(by_event.customer_id, by_day.customer_id) as customer_id,
    coalesce(by_event.metric_type, by_day.metric_type) as metric_type,
    by_event.quantity as quantity_by_event,
    by_day.quantity as quantity_by_day,
    by_event.event_count as count_by_event,
    by_day.event_count as count_by_day
from by_event
full outer join by_day
    on by_event.customer_id = by_day.customer_id and by_event.metric_type = by_day.metric_type
where
    by_event.quantity != by_day.quantity
    or by_event.event_count != by_day.event_count
