-- Its plans are tested against the catalogue, which must stop what is behind this model.
-- depends_on: {{ ref('plan_catalogue') }}
select
    id as change_id,
    subscription_id,
    customer_id,
    effective_at,
    plan_type,
    status,
    base_price_cents,
    currency,
    included_impressions,
    included_api_calls,
    included_data_transfer_gb,
    platform_fee_basis_points,
    platform_fee_minimum_cents,
    snapshot_at
from {{ source('raw', 'subscription_changes') }} final
