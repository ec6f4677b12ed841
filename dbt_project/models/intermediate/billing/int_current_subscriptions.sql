with subscriptions as (

    select
        *,
        coalesce(toDate(cancelled_at, 'UTC') > {{ as_of_date() }}, true) as is_open
    from {{ ref('stg_subscriptions') }}
    where toDate(started_at, 'UTC') <= {{ as_of_date() }}

),

current_subscriptions as (

    select *
    from subscriptions
    order by is_open desc, started_at desc, subscription_id asc
    limit 1 by customer_id

),

price_changes as (

    select
        customer_id,
        valid_from,
        base_price_cents,
        lagInFrame(base_price_cents, 1, base_price_cents) over (
            partition by customer_id order by valid_from, subscription_id
            rows between unbounded preceding and current row
        ) as previous_base_price_cents
    from {{ ref('int_subscription_terms') }}

),

recent_changes as (

    select
        customer_id,
        argMax(base_price_cents, valid_from) as base_price_cents,
        maxIf(
            previous_base_price_cents,
            previous_base_price_cents > price_changes.base_price_cents
            and toDate(valid_from, 'UTC') >= {{ as_of_date() }} - 90
        ) as left_base_price_cents
    from price_changes
    group by customer_id

)

select
    subscription.customer_id as customer_id,
    subscription.subscription_id as subscription_id,
    subscription.plan_type as plan_type,
    subscription.status as status,
    subscription.base_price_cents as base_price_cents,
    subscription.currency as currency,
    subscription.included_impressions as included_impressions,
    subscription.started_at as started_at,
    subscription.trial_end as trial_end,
    subscription.current_period_start as current_period_start,
    subscription.current_period_end as current_period_end,
    subscription.cancelled_at as cancelled_at,
    toUInt8(subscription.is_open) as is_open,
    -- Who went back up again has not gone down.
    toUInt8(recent_changes.left_base_price_cents > recent_changes.base_price_cents) as is_downgrade_90d
from current_subscriptions as subscription
left join recent_changes
    on subscription.customer_id = recent_changes.customer_id
