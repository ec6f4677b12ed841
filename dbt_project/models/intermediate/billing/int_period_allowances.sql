{{ config(order_by=['customer_id', 'subscription_id', 'period_start', 'metric_type']) }}

with terms_inside as (

    -- The terms that hold in a period and on how many of its days (UTC): the day of a change has the new
    -- terms. Cancelling takes nothing from what the period includes.
    select
        period.customer_id as customer_id,
        period.subscription_id as subscription_id,
        period.period_start as period_start,
        toDate(period.period_start, 'UTC') as first_day,
        toDate(period.scheduled_end, 'UTC') as day_after,
        dateDiff('day', first_day, day_after) as days_in_period,
        terms.valid_from as valid_from,
        terms.plan_type as plan_type,
        terms.base_price_cents as base_price_cents,
        terms.included_impressions as included_impressions,
        terms.included_api_calls as included_api_calls,
        terms.included_data_transfer_gb as included_data_transfer_gb,
        dateDiff(
            'day',
            greatest(first_day, toDate(terms.valid_from, 'UTC')),
            least(day_after, coalesce(toDate(terms.next_change_at, 'UTC'), day_after))
        ) as days
    from {{ ref('int_billing_periods') }} as period
    inner join {{ ref('int_subscription_terms') }} as terms
        on period.subscription_id = terms.subscription_id
    where
        terms.valid_from < period.scheduled_end
        and coalesce(terms.next_change_at > period.period_start, true)

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
    {{ divide_half_even('sum(toInt256(included) * greatest(0, days))', 'any(days_in_period)') }} as included_quantity,
    -- Overage is priced by the plan in which the period ends.
    argMax(plan_type, valid_from) as overage_plan_type,
    argMax(assumeNotNull(price_cents), valid_from) as overage_price_cents,
    argMax(assumeNotNull(price_quantity), valid_from) as overage_price_quantity
from included_by_terms
group by customer_id, subscription_id, period_start, metric_type
