-- Its plans are tested against the catalogue, which must stop what is behind this model.
-- depends_on: {{ ref('plan_catalogue') }}
select
    id as subscription_id,
    customer_id,
    plan_type,
    status,
    base_price_cents,
    currency,
    included_impressions,
    included_api_calls,
    included_data_transfer_gb,
    platform_fee_basis_points,
    platform_fee_minimum_cents,
    started_at,
    trial_end,
    current_period_start,
    current_period_end,
    cancelled_at,
    snapshot_at
from {{ source('raw', 'subscriptions') }} final
