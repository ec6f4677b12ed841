select
    customer_id,
    toString(metric_type) as metric_type,
    period_start,
    window_start,
    window_end,
    quantity,
    counted_until,
    synced_at,
    fetched_at
from {{ source('raw', 'stripe_meter_summaries') }} final
where livemode = {{ var('stripe_livemode') }}
