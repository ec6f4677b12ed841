with subscriptions as (

    select
        *,
        coalesce(toDate(cancelled_at, 'UTC') > {{ as_of_date() }}, true) as is_open,
        lagInFrame(base_price_cents, 1, base_price_cents) over (
            partition by customer_id order by started_at, subscription_id
            rows between unbounded preceding and current row
        ) as previous_base_price_cents
    from {{ ref('stg_subscriptions') }}
    where toDate(started_at, 'UTC') <= {{ as_of_date() }}

)

select
    customer_id,
    subscription_id,
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
    toUInt8(is_open) as is_open,
    toUInt8(
        base_price_cents < previous_base_price_cents and toDate(started_at, 'UTC') >= {{ as_of_date() }} - 90
    ) as is_downgrade_90d
from subscriptions
order by is_open desc, started_at desc, subscription_id asc
limit 1 by customer_id
