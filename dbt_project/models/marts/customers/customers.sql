with segments as (

    select customer_id, arraySort(groupArray(toString(segment))) as segments
    from {{ ref('int_segment_members') }}
    group by customer_id

),

risks as (

    select customer_id, arraySort(groupArray(toString(reason))) as reasons
    from {{ ref('at_risk_customers') }}
    group by customer_id

),

newest_scores as (

    select
        customer_id,
        argMax(probability, (feature_date, scored_at)) as probability,
        max(feature_date) as scored_on
    from {{ ref('stg_churn_scores') }}
    where
        feature_date <= {{ as_of_date() }}
        and dateDiff('day', feature_date, {{ as_of_date() }}) <= {{ threshold('segment', 'churn_score_max_age_days') }}
    group by customer_id

)

select
    customer.customer_id as customer_id,
    usage.as_of_date as as_of_date,
    customer.customer_name as customer_name,
    customer.email as email,
    customer.country as country,
    customer.company_size as company_size,
    customer.source as source,
    customer.created_at as created_at,
    usage.known_since as known_since,
    if(subscription.customer_id = '', null, subscription.subscription_id) as subscription_id,
    if(subscription.customer_id = '', null, toString(subscription.plan_type)) as plan_type,
    if(subscription.customer_id = '', 'none', toString(subscription.status)) as status,
    toUInt8(subscription.is_open) as has_open_subscription,
    -- Money that comes in each month: not a trial's, and none while suspended.
    if(
        subscription.is_open and subscription.status in ('active', 'past_due'), subscription.base_price_cents, 0
    ) as mrr_cents,
    if(subscription.customer_id = '', null, toString(subscription.currency)) as currency,
    if(subscription.customer_id = '', null, subscription.started_at) as subscription_started_at,
    subscription.cancelled_at as cancelled_at,
    usage.last_active_on as last_active_on,
    usage.active_days_30d as active_days_30d,
    usage.impressions_30d as impressions_30d,
    usage.impressions_previous_30d as impressions_previous_30d,
    usage.api_calls_30d as api_calls_30d,
    usage.data_transfer_bytes_30d as data_transfer_bytes_30d,
    usage.mediated_revenue_micros_30d as mediated_revenue_micros_30d,
    usage.features_30d as features_30d,
    usage.support_tickets_30d as support_tickets_30d,
    usage.console_logins_30d as console_logins_30d,
    if(health.customer_id = '', null, health.score) as health_score,
    if(health.customer_id = '', null, toString(health.band)) as health_band,
    segments.segments as segments,
    risks.reasons as at_risk_reasons,
    if(newest_scores.customer_id = '', null, newest_scores.probability) as churn_probability,
    if(newest_scores.customer_id = '', null, newest_scores.scored_on) as churn_scored_on
from {{ ref('int_customer_usage') }} as usage
inner join {{ ref('stg_customers') }} as customer
    on usage.customer_id = customer.customer_id
left join {{ ref('int_current_subscriptions') }} as subscription
    on usage.customer_id = subscription.customer_id
left join {{ ref('customer_health') }} as health
    on usage.customer_id = health.customer_id
left join segments
    on usage.customer_id = segments.customer_id
left join risks
    on usage.customer_id = risks.customer_id
left join newest_scores
    on usage.customer_id = newest_scores.customer_id
