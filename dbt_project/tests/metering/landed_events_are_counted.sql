-- Each pair of customer and event that landed in the 2 days before the stored mark is in int_usage_events. Of the
-- last hour only what the model holds to be read for good: rows that became visible behind the mark come with
-- the next run. Looks up one number a pair, so memory grows with 2 days of arrivals and not with what is stored;
-- a lost pair hides only if its key is another's by chance, some 1 in 10^9 even among 10^10 stored.
with landed as (

    select
        customer_id,
        event_id,
        sipHash64(customer_id, event_id) as event_key
    from {{ ref('stg_usage_events') }}
    where
        loaded_at > {{ stored_watermark('int_usage_events') }} - interval 2 day
        and loaded_at <= {{ usage_events_read_until() }}

),

counted_keys as (

    select event_key
    from {{ ref('int_usage_events') }}
    where event_key in (select event_key from landed)

)

select distinct customer_id, event_id
from landed
where event_key not in (select event_key from counted_keys)
