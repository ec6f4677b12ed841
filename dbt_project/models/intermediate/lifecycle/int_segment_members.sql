with subscribers as (

    select
        usage.customer_id as customer_id,
        usage.* except (customer_id),
        subscription.plan_type as plan_type,
        subscription.base_price_cents as base_price_cents,
        toUInt8(subscription.is_open = 1) as has_open_subscription
    from {{ ref('int_customer_usage') }} as usage
    left join {{ ref('int_current_subscriptions') }} as subscription
        on usage.customer_id = subscription.customer_id
    where subscription.customer_id = '' or subscription.is_open

),

newest_scores as (

    select
        customer_id,
        argMax(probability, (feature_date, scored_at)) as probability
    from {{ ref('stg_churn_scores') }}
    where
        feature_date <= {{ as_of_date() }}
        and dateDiff('day', feature_date, {{ as_of_date() }}) <= {{ threshold('segment', 'churn_score_max_age_days') }}
    group by customer_id

),

at_risk_reasons as (

    select
        customer_id,
        arrayStringConcat(arraySort(groupArray(toString(reason))), ', ') as reasons
    from {{ ref('at_risk_customers') }}
    group by customer_id

),

likely_leavers as (

    select
        customer_id,
        concat('churn probability ', toString(round(probability, 2))) as reasons
    from newest_scores
    where
        probability > {{ threshold('segment', 'churn_probability') }}
        and customer_id in (select customer_id from subscribers)

),

members as (

    select
        customer_id,
        'power_user' as segment,
        concat(toString(impressions_30d), ' impressions in the last 30 days') as reason
    from subscribers
    where impressions_30d > {{ threshold('segment', 'power_user_min_impressions_30d') }}

    union all

    select
        customer_id,
        'growing' as segment,
        concat(
            toString(impressions_30d), ' impressions in the last 30 days, ',
            toString(impressions_previous_30d), ' in the 30 before'
        ) as reason
    from subscribers
    where
        -- Who came in the midst of the earlier window grows by its empty days alone.
        known_since <= as_of_date - 60
        and impressions_previous_30d > 0
        and impressions_30d > {{ threshold('segment', 'growing_ratio') }} * impressions_previous_30d

    union all

    select
        customer_id,
        'at_risk' as segment,
        arrayStringConcat(arraySort(groupArray(reasons)), ', ') as reason
    from (
        select * from at_risk_reasons
        union all
        select * from likely_leavers
    )
    group by customer_id

    union all

    select
        customer_id,
        'vip' as segment,
        concat('plan ', plan_type, ' at ', toString(base_price_cents), ' cents a month') as reason
    from subscribers
    where
        has_open_subscription
        and (
            plan_type = 'enterprise'
            or base_price_cents >= {{ threshold('segment', 'vip_min_base_price_cents') }}
        )

)

select
    customer_id,
    toLowCardinality(segment) as segment,
    {{ as_of_date() }} as as_of_date,
    reason
from members
