select
    customer_id,
    stripe_customer_id,
    subscription_id,
    toString(metric_type) as metric_type,
    period_start,
    slot_start,
    number,
    quantity,
    identifier,
    toString(state) as state,
    created_at,
    first_sent_at,
    settled_at,
    error_message
from {{ source('raw', 'stripe_meter_ledger') }} final
where livemode = {{ var('stripe_livemode') }}
