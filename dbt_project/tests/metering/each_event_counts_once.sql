-- No pair of customer and event of the newest run stands twice. Older pairs were looked at when they were new,
-- so the cost follows the change.
with keys_in_several_rows as (

    select event_key
    from {{ ref('int_usage_events') }}
    where
        event_key in (
            select event_key
            from {{ ref('int_usage_events') }}
            where processed_at > {{ previous_watermark('int_usage_events.processed_at') }}
        )
    group by event_key
    having count() > 1

)

select customer_id, event_id, count() as row_count
from {{ ref('int_usage_events') }}
where event_key in (select event_key from keys_in_several_rows)
group by customer_id, event_id
having count() > 1
