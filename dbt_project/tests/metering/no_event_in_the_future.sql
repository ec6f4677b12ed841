-- Nobody used anything more than five minutes after the API took word of it; it rejects what claims so.
select customer_id, event_id, event_time, accepted_at
from {{ ref('int_usage_events') }}
where
    event_time > accepted_at + interval 5 minute
    and processed_at > {{ previous_watermark('int_usage_events.processed_at') }}
