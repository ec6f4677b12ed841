{{ config(order_by=['customer_id']) }}

with next_plans as (

    -- The next plan up. Enterprise is priced for each customer, so there is nothing to compare with.
    select plan_type, currency, next_plan_type, next_base_price_cents
    from (
        select
            plan.plan_type as plan_type,
            plan.currency as currency,
            argMin(other.plan_type, other.rank) as next_plan_type,
            argMin(other.base_price_cents, other.rank) as next_base_price_cents
        from {{ ref('plan_catalogue') }} as plan
        inner join {{ ref('plan_catalogue') }} as other
            on plan.currency = other.currency
        where other.rank > plan.rank
        group by plan.plan_type, plan.currency
    )
    where next_plan_type != 'enterprise'

),

subscribers as (

    select
        subscription.customer_id as customer_id,
        subscription.subscription_id as subscription_id,
        subscription.plan_type as plan_type,
        subscription.base_price_cents as base_price_cents,
        subscription.currency as currency,
        next_plans.next_plan_type as next_plan_type,
        next_plans.next_base_price_cents as next_base_price_cents
    from {{ ref('int_current_subscriptions') }} as subscription
    inner join next_plans
        on subscription.plan_type = next_plans.plan_type and subscription.currency = next_plans.currency
    where subscription.is_open and subscription.status != 'suspended'

),

last_periods as (

    select subscription_id, period_start, period_end
    from (
        select
            subscription_id,
            period_start,
            period_end,
            row_number() over (partition by subscription_id order by period_start desc) as periods_back
        from {{ ref('int_billing_periods') }}
        where is_ended and not is_trial
    )
    where periods_back <= {{ threshold('upsell', 'periods_looked_at') }}

),

next_allowances as (

    select
        allowance.plan_type as plan_type,
        allowance.metric_type as metric_type,
        toInt64(intExp10(metric.scale)) as storage_units,
        allowance.included_units * storage_units as included_quantity,
        if(allowance.overage_units is null, plan.base_price_cents, allowance.overage_price_cents) as price_cents,
        multiIf(
            allowance.included_units = 0, 0,
            allowance.overage_units is null, included_quantity,
            allowance.overage_units * storage_units
        ) as price_quantity
    from {{ ref('plan_allowances') }} as allowance
    inner join {{ ref('plan_catalogue') }} as plan
        on allowance.plan_type = plan.plan_type
    inner join {{ ref('metric_catalogue') }} as metric
        on allowance.metric_type = metric.metric_type

),

period_lines as (

    -- Both prices of one metric's use beyond what is included. Periods of another plan say nothing of this one.
    select
        subscribers.customer_id as customer_id,
        subscribers.plan_type as plan_type,
        subscribers.next_plan_type as next_plan_type,
        subscribers.currency as currency,
        subscribers.base_price_cents as base_price_cents,
        subscribers.next_base_price_cents as next_base_price_cents,
        last_periods.period_start as period_start,
        last_periods.period_end as period_end,
        usage.overage_quantity as overage_quantity,
        {{ overage_cents(
            'usage.overage_quantity', 'allowance.overage_price_cents', 'allowance.overage_price_quantity'
        ) }} as overage_cents,
        {{ overage_cents(
            'greatest(0, usage.quantity - next_allowances.included_quantity)',
            'coalesce(next_allowances.price_cents, 0)',
            'coalesce(next_allowances.price_quantity, 0)'
        ) }} as next_overage_cents
    from {{ ref('usage_by_period') }} as usage
    inner join last_periods
        on usage.subscription_id = last_periods.subscription_id and usage.period_start = last_periods.period_start
    inner join subscribers
        on usage.subscription_id = subscribers.subscription_id
    inner join {{ ref('int_period_allowances') }} as allowance
        on
            usage.subscription_id = allowance.subscription_id
            and usage.period_start = allowance.period_start
            and usage.metric_type = allowance.metric_type
    left join next_allowances
        on
            subscribers.next_plan_type = next_allowances.plan_type
            and usage.metric_type = next_allowances.metric_type
    where allowance.overage_plan_type = subscribers.plan_type

),

period_costs as (

    select
        customer_id,
        plan_type,
        next_plan_type,
        currency,
        period_start,
        any(period_end) as period_end,
        max(overage_quantity > 0) as has_overage,
        any(base_price_cents) + sum(overage_cents) as current_cents,
        any(next_base_price_cents) + sum(next_overage_cents) as next_cents
    from period_lines
    group by customer_id, plan_type, next_plan_type, currency, period_start

),

customers as (

    select
        customer_id,
        plan_type,
        next_plan_type,
        currency,
        count() as periods,
        countIf(has_overage) as overage_periods,
        min(period_start) as first_period_start,
        max(period_end) as last_period_end,
        sum(current_cents) as current_cents,
        sum(next_cents) as next_cents
    from period_costs
    group by customer_id, plan_type, next_plan_type, currency

)

select
    customer_id,
    {{ as_of_date() }} as as_of_date,
    plan_type,
    toLowCardinality(next_plan_type) as next_plan_type,
    currency,
    periods,
    overage_periods,
    first_period_start,
    last_period_end,
    current_cents as current_cost_cents,
    next_cents as next_plan_cost_cents,
    {{ divide_half_even('current_cents - next_cents', 'periods') }} as saving_cents
from customers
where
    overage_periods >= {{ threshold('upsell', 'min_overage_periods') }}
    and current_cents - next_cents > {{ threshold('upsell', 'min_saving_cents') }} * periods
