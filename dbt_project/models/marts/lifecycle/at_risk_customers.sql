with present_customers as (

    -- Who left is lost, not at risk; who is suspended uses less because we stopped it. Imports have no
    -- subscription and are watched by their use.
    select
        usage.customer_id as customer_id,
        usage.* except (customer_id),
        subscription.subscription_id as subscription_id
    from {{ ref('int_customer_usage') }} as usage
    left join {{ ref('int_current_subscriptions') }} as subscription
        on usage.customer_id = subscription.customer_id
    where subscription.customer_id = '' or (subscription.is_open and subscription.status != 'suspended')

)

select
    customer_id,
    as_of_date,
    toLowCardinality('usage_drop') as reason,
    concat(
        toString(impressions_7d), ' impressions in the last 7 days, ',
        toString(impressions_previous_7d), ' in the 7 before'
    ) as detail
from present_customers
where
    impressions_previous_7d > {{ threshold('at_risk', 'usage_drop_min_previous_impressions') }}
    and impressions_7d < {{ threshold('at_risk', 'usage_drop_ratio') }} * impressions_previous_7d

union all

select
    customer_id,
    as_of_date,
    toLowCardinality('no_telemetry') as reason,
    concat('signed up on ', toString(signed_up_on), ', no telemetry yet') as detail
from present_customers
where
    days_with_telemetry = 0
    and dateDiff('day', signed_up_on, as_of_date) >= {{ threshold('at_risk', 'no_telemetry_min_days') }}
    and dateDiff('day', signed_up_on, as_of_date) <= {{ threshold('at_risk', 'no_telemetry_max_days') }}

union all

select
    customers.customer_id as customer_id,
    customers.as_of_date as as_of_date,
    toLowCardinality('near_limit') as reason,
    concat(
        toString(period.quantity), ' of ', toString(assumeNotNull(period.included_quantity)),
        ' included impressions used in the period from ',
        toString(toDate(period.period_start, 'UTC'))
    ) as detail
from present_customers as customers
-- A customer who is on the way out of one subscription may have begun the next, which speaks.
inner join {{ ref('usage_by_period') }} as period
    on customers.subscription_id = period.subscription_id
where
    period.metric_type = 'impressions'
    and not period.is_ended
    and period.included_quantity is not null
    and period.used_ratio >= {{ threshold('at_risk', 'near_limit_from_ratio') }}
    and period.used_ratio <= {{ threshold('at_risk', 'near_limit_to_ratio') }}
