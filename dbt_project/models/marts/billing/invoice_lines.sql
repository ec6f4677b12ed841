{{ config(order_by=['customer_id', 'period_start', 'line_type']) }}

with terms_inside as (

    {{ terms_by_period() }}

),

charged_terms as (

    -- A suspension takes nothing from the period in which it begins, which was due before; a period that begins
    -- suspended is charged from the day on which access came back.
    select
        *,
        min(if(status = 'suspended', null, valid_from)) over (
            partition by subscription_id, period_start
        ) as served_from,
        if(is_trial = 0 and coalesce(valid_from >= served_from, false), base_price_cents, 0) as charged_cents
    from terms_inside

),

periods as (

    select
        customer_id,
        subscription_id,
        period_start,
        any(charged_terms.period_end) as period_end,
        any(charged_terms.is_trial) as is_trial,
        any(charged_terms.is_ended) as is_ended,
        argMax(charged_terms.plan_type, valid_from) as plan_type,
        argMax(charged_terms.currency, valid_from) as currency,
        {{ divide_half_even('sum(toInt256(charged_cents) * days)', 'any(days_in_period)') }} as price_cents
    from charged_terms
    group by customer_id, subscription_id, period_start

),

subscription_lines as (

    select
        customer_id,
        subscription_id,
        'subscription' as line_type,
        null as metric_type,
        plan_type,
        period_start,
        period_end,
        is_ended,
        toStartOfMonth(period_start) as revenue_month,
        period_start as due_at,
        null as quantity,
        null as unit_price_cents,
        null as unit_quantity,
        price_cents as amount_cents,
        currency
    from periods

),

overage_lines as (

    select
        usage.customer_id as customer_id,
        usage.subscription_id as subscription_id,
        'overage' as line_type,
        usage.metric_type as metric_type,
        allowance.overage_plan_type as plan_type,
        usage.period_start as period_start,
        usage.period_end as period_end,
        usage.is_ended as is_ended,
        toStartOfMonth(usage.period_end - toIntervalMicrosecond(1)) as revenue_month,
        usage.period_end as due_at,
        usage.overage_quantity as quantity,
        if(usage.is_trial, 0, allowance.overage_price_cents) as unit_price_cents,
        allowance.overage_price_quantity as unit_quantity,
        {{ overage_cents('quantity', 'unit_price_cents', 'unit_quantity') }} as amount_cents,
        allowance.currency as currency
    from {{ ref('usage_by_period') }} as usage
    inner join {{ ref('int_period_allowances') }} as allowance
        on
            usage.subscription_id = allowance.subscription_id
            and usage.period_start = allowance.period_start
            and usage.metric_type = allowance.metric_type
    where usage.overage_quantity > 0

),

fee_lines as (

    select
        customer_id,
        null as subscription_id,
        'platform_fee' as line_type,
        'mediated_revenue' as metric_type,
        null as plan_type,
        toDateTime64(month, 6, 'UTC') as period_start,
        toDateTime64(addMonths(month, 1), 6, 'UTC') as period_end,
        is_ended,
        month as revenue_month,
        period_end as due_at,
        revenue as quantity,
        toInt64(fee_basis_points) as unit_price_cents,
        -- So many hundredths of a cent's worth: the rate is a price for 10,000 cents of revenue.
        10000 * units_per_cent as unit_quantity,
        fee_cents as amount_cents,
        currency
    from {{ ref('int_platform_fees') }}

),

lines as (

    select * from subscription_lines
    union all
    select * from overage_lines
    union all
    select * from fee_lines

)

select
    customer_id,
    cast(subscription_id as Nullable(String)) as subscription_id,
    toLowCardinality(line_type) as line_type,
    cast(metric_type as LowCardinality(Nullable(String))) as metric_type,
    cast(plan_type as LowCardinality(Nullable(String))) as plan_type,
    period_start,
    period_end,
    toUInt8(is_ended) as is_final,
    revenue_month,
    due_at,
    cast(quantity as Nullable(Int64)) as quantity,
    cast(unit_price_cents as Nullable(Int64)) as unit_price_cents,
    cast(unit_quantity as Nullable(Int64)) as unit_quantity,
    toInt64(amount_cents) as amount_cents,
    toLowCardinality(currency) as currency
from lines
