select
    id as subscription_id,
    customer_id,
    plan_type,
    status,
    base_price_cents,
    currency,
    included_impressions,
    started_at,
    trial_end,
    current_period_start,
    current_period_end,
    cancelled_at,
    snapshot_at
from {{ source('raw', 'subscriptions') }}
