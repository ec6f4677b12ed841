-- What is sent to Stripe is what each billing period counts; names the customers for whom it is not.
with by_slot as (

    select customer_id, subscription_id, period_start, toString(metric_type) as metric_type, sum(quantity) as quantity
    from {{ ref('metered_usage') }}
    where
        metric_type in (
            select metric_type
            from {{ ref('metric_catalogue') }}
            where kind = 'usage'
        )
    group by customer_id, subscription_id, period_start, metric_type

),

by_period as (

    select customer_id, subscription_id, period_start, toString(metric_type) as metric_type, quantity
    from {{ ref('usage_by_period') }}

)

select
    coalesce(nullIf(by_period.customer_id, ''), by_slot.customer_id) as customer_id,
    by_period.subscription_id as subscription_id,
    by_period.period_start as period_start,
    by_period.metric_type as metric_type,
    by_period.quantity as quantity_by_period,
    by_slot.quantity as quantity_by_slot
from by_period
full outer join by_slot
    on
        by_period.subscription_id = by_slot.subscription_id
        and by_period.period_start = by_slot.period_start
        and by_period.metric_type = by_slot.metric_type
where by_period.quantity != by_slot.quantity
