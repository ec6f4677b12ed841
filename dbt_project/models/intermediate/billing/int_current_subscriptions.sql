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

present_terms as (

    -- At the run's instant. The subscription itself is as it was copied, perhaps long after, and of an end to come it
    -- says that it is cancelled already.
    select
        subscription_id,
        argMax(terms.plan_type, valid_from) as plan_type,
        argMax(terms.status, valid_from) as status,
        argMax(terms.base_price_cents, valid_from) as base_price_cents,
        argMax(terms.currency, valid_from) as currency,
        argMax(terms.included_impressions, valid_from) as included_impressions
    from {{ ref('int_subscription_terms') }} as terms
    where valid_from < {{ as_of_instant() }}
    group by subscription_id

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
    -- One that begins later today has no terms yet.
    toLowCardinality(if(terms.subscription_id = '', subscription.plan_type, terms.plan_type)) as plan_type,
    toLowCardinality(multiIf(
        not subscription.is_open, 'canceled',
        terms.subscription_id = '', toString(subscription.status),
        toString(terms.status)
    )) as status,
    if(terms.subscription_id = '', subscription.base_price_cents, terms.base_price_cents) as base_price_cents,
    toLowCardinality(if(terms.subscription_id = '', subscription.currency, terms.currency)) as currency,
    if(
        terms.subscription_id = '', subscription.included_impressions, terms.included_impressions
    ) as included_impressions,
    subscription.started_at as started_at,
    subscription.cancelled_at as cancelled_at,
    toUInt8(subscription.is_open) as is_open,
    -- Who went back up again has not gone down.
    toUInt8(recent_changes.left_base_price_cents > recent_changes.base_price_cents) as is_downgrade_90d
from current_subscriptions as subscription
left join present_terms as terms
    on subscription.subscription_id = terms.subscription_id
left join recent_changes
    on subscription.customer_id = recent_changes.customer_id
