{{ config(order_by=['customer_id', 'subscription_id', 'period_start', 'metric_type']) }}

with terms_inside as (

    {{ terms_by_period() }}

),

included_by_terms as (

    select
        terms_inside.* except (plan_type),
        terms_inside.plan_type as plan_type,
        metric.metric_type as metric_type,
        toInt64(intExp10(metric.scale)) as storage_units,
        storage_units * multiIf(
            metric.metric_type = 'impressions', included_impressions,
            metric.metric_type = 'api_calls', coalesce(included_api_calls, allowance.included_units),
            metric.metric_type = 'data_transfer', coalesce(included_data_transfer_gb, allowance.included_units),
            allowance.included_units
        ) as included,
        if(allowance.overage_units is null, base_price_cents, allowance.overage_price_cents) as price_cents,
        if(allowance.overage_units is null, included, allowance.overage_units * storage_units) as price_quantity
    from terms_inside
    inner join {{ ref('plan_allowances') }} as allowance
        on terms_inside.plan_type = allowance.plan_type
    inner join {{ ref('metric_catalogue') }} as metric
        on allowance.metric_type = metric.metric_type

)

select
    customer_id,
    subscription_id,
    period_start,
    metric_type,
    {{ divide_half_even('sum(toInt256(included) * days)', 'any(days_in_period)') }} as included_quantity,
    -- Overage is priced by the plan in which the period ends.
    argMax(plan_type, valid_from) as overage_plan_type,
    argMax(assumeNotNull(price_cents), valid_from) as overage_price_cents,
    argMax(assumeNotNull(price_quantity), valid_from) as overage_price_quantity,
    argMax(included_by_terms.currency, valid_from) as currency
from included_by_terms
group by customer_id, subscription_id, period_start, metric_type
