with open_subscriptions as (

    select
        subscription.customer_id as customer_id,
        subscription.subscription_id as subscription_id,
        subscription.current_period_start as period_start,
        subscription.current_period_end as period_end,
        subscription.plan_type as plan_type,
        subscription.included_impressions as included_impressions
    from {{ ref('int_current_subscriptions') }} as subscription
    where subscription.is_open

),

usage_inside as (

    -- Whole days come from the daily sums, the two days that a period may cut from the events themselves.
    select
        open_subscriptions.customer_id as customer_id,
        daily.metric_type as metric_type,
        sum(daily.quantity) as quantity
    from {{ ref('usage_daily') }} as daily
    inner join open_subscriptions
        on daily.customer_id = open_subscriptions.customer_id
    where
        daily.usage_date > toDate(open_subscriptions.period_start, 'UTC')
        and daily.usage_date < toDate(open_subscriptions.period_end, 'UTC')
    group by open_subscriptions.customer_id, daily.metric_type

    union all

    select
        open_subscriptions.customer_id as customer_id,
        event.metric_type as metric_type,
        sum(event.quantity) as quantity
    from {{ ref('int_usage_events') }} as event
    inner join open_subscriptions
        on event.customer_id = open_subscriptions.customer_id
    where
        (event.customer_id, event.usage_date) in (
            select customer_id, arrayJoin([toDate(period_start, 'UTC'), toDate(period_end, 'UTC')])
            from open_subscriptions
        )
        and event.event_time >= open_subscriptions.period_start
        and event.event_time < open_subscriptions.period_end
    group by open_subscriptions.customer_id, event.metric_type

),

usage_by_customer as (

    select customer_id, metric_type, sum(quantity) as quantity
    from usage_inside
    group by customer_id, metric_type

),

periods as (

    select
        open_subscriptions.*,
        metric.metric_type as metric_type,
        if(
            metric.metric_type = 'impressions',
            included_impressions,
            allowance.included_units * toInt64(intExp10(metric.scale))
        ) as included
    from open_subscriptions
    cross join (select * from {{ ref('metric_catalogue') }} where kind = 'usage') as metric
    left join {{ ref('plan_allowances') }} as allowance
        on open_subscriptions.plan_type = allowance.plan_type and metric.metric_type = allowance.metric_type

)

select
    periods.customer_id as customer_id,
    periods.subscription_id as subscription_id,
    periods.period_start as period_start,
    periods.period_end as period_end,
    periods.metric_type as metric_type,
    usage.quantity as quantity,
    if(periods.included > 0, periods.included, null) as included_quantity,
    if(periods.included > 0, usage.quantity / periods.included, 0) as used_ratio
from periods
left join usage_by_customer as usage
    on periods.customer_id = usage.customer_id and periods.metric_type = usage.metric_type
