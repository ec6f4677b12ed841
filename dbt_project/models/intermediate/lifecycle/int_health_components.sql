with failed_payments as (

    select customer_id, count() as payment_failures_90d
    from {{ ref('stg_payments') }}
    where
        status = 'failed'
        and toDate(occurred_at, 'UTC') >= {{ as_of_date() }} - 90
        and toDate(occurred_at, 'UTC') < {{ as_of_date() }}
    group by customer_id

),

customers as (

    -- Who left has no health. Who never had a subscription (an import) is judged by use alone.
    select
        usage.customer_id as customer_id,
        usage.* except (customer_id),
        greatest(1, least(30, dateDiff('day', known_since, as_of_date - 30))) as days_known_of_previous_30d,
        failed.payment_failures_90d as payment_failures_90d,
        subscription.is_downgrade_90d as downgrades_90d,
        if(subscription.included_impressions > 0, subscription.included_impressions, null) as included,
        -- Customers that only call the API have a trend too.
        if(
            impressions_30d > 0 or impressions_previous_30d > 0, impressions_30d, api_calls_30d
        ) as used_30d,
        -- A window that began before the customer did is filled up at its own pace, lest steady or falling use
        -- look like growth.
        if(
            impressions_30d > 0 or impressions_previous_30d > 0, impressions_previous_30d, api_calls_previous_30d
        ) * 30 / days_known_of_previous_30d as used_previous_30d
    from {{ ref('int_customer_usage') }} as usage
    left join {{ ref('int_current_subscriptions') }} as subscription
        on usage.customer_id = subscription.customer_id
    left join failed_payments as failed
        on usage.customer_id = failed.customer_id
    where subscription.customer_id = '' or subscription.is_open

),

customer_values as (

    select
        customer_id,
        arrayJoin([
            ('usage_trend', multiIf(used_30d <= 0, 0, used_previous_30d <= 0, 1, used_30d / used_previous_30d)),
            ('usage_recency', toFloat64(coalesce(dateDiff('day', last_active_on, {{ as_of_date() }}), 10000))),
            ('feature_adoption', toFloat64(features_30d)),
            ('support_tickets', toFloat64(support_tickets_30d)),
            ('doc_views', toFloat64(doc_views_30d)),
            ('console_logins', toFloat64(console_logins_30d)),
            ('payment_failures', toFloat64(payment_failures_90d)),
            ('downgrade', toFloat64(downgrades_90d)),
            (
                'overage_frequency',
                toFloat64(
                    coalesce(impressions_30d > included, 0)
                    + coalesce(impressions_previous_30d > included, 0)
                    + coalesce(impressions_third_30d > included, 0)
                )
            )
        ]) as measured
    from customers

)

select
    customer_values.customer_id as customer_id,
    {{ as_of_date() }} as as_of_date,
    rule.component as component,
    rule.area as area,
    customer_values.measured.2 as value,
    rule.max_points as max_points,
    round(
        rule.max_points * greatest(
            0,
            least(1, (customer_values.measured.2 - rule.value_at_zero) / (rule.value_at_full - rule.value_at_zero))
        ),
        2
    ) + 0 as points -- without + 0 no points may show as -0
from customer_values
inner join {{ ref('health_points') }} as rule
    on customer_values.measured.1 = rule.component
