{{ config(order_by=['customer_id', 'month']) }}

with revenue_by_month as (

    select
        customer_id,
        toStartOfMonth(usage_date) as month,
        sum(quantity) as revenue
    from {{ ref('usage_daily') }}
    where metric_type = 'mediated_revenue' and usage_date <= {{ as_of_date() }}
    group by customer_id, month

),

terms_by_month as (

    select
        *,
        addMonths(
            toStartOfMonth(valid_from),
            -- Terms that follow a running trial may begin months from now.
            arrayJoin(range(toUInt64(greatest(0, 1 + dateDiff(
                'month',
                toDate(valid_from, 'UTC'),
                least(coalesce(toDate(valid_to, 'UTC'), {{ as_of_date() }}), {{ as_of_date() }})
            )))))
        ) as month,
        least(toDateTime64(addMonths(month, 1), 6, 'UTC'), {{ as_of_instant() }}) as month_end
    from {{ ref('int_subscription_terms') }}

),

contracts as (

    -- The terms that hold at the last instant of the month; of a running month, now. A minimum binds who pays.
    select
        customer_id,
        month,
        tupleElement(argMax(tuple(platform_fee_basis_points), valid_from), 1) as contract_basis_points,
        argMax(if(status in ('active', 'past_due'), platform_fee_minimum_cents, 0), valid_from) as minimum_cents
    from terms_by_month
    where valid_from < month_end and coalesce(valid_to >= month_end, true)
    group by customer_id, month

),

months as (

    select
        if(revenue.customer_id = '', contracts.customer_id, revenue.customer_id) as customer_id,
        if(revenue.customer_id = '', contracts.month, revenue.month) as month,
        revenue.revenue as revenue,
        contracts.contract_basis_points as contract_basis_points,
        contracts.minimum_cents as minimum_cents
    from revenue_by_month as revenue
    full outer join contracts
        on revenue.customer_id = contracts.customer_id and revenue.month = contracts.month
    where revenue.customer_id != '' or contracts.minimum_cents > 0

),

projected as (

    select
        months.*,
        metric.unit as unit,
        toInt64(intExp10(metric.scale - 2)) as units_per_cent,
        toDateTime64(month, 6, 'UTC') as month_start,
        toDateTime64(addMonths(month, 1), 6, 'UTC') as month_end,
        least(month_end, {{ as_of_instant() }}) as seen_until,
        {{ divide_half_even(
            "toInt256(revenue) * dateDiff('microsecond', month_start, month_end)",
            "greatest(1, dateDiff('microsecond', month_start, seen_until))"
        ) }} as projected_revenue
    from months
    cross join (
        select *
        from {{ ref('metric_catalogue') }}
        where metric_type = 'mediated_revenue'
    ) as metric

)

select
    customer_id,
    month,
    toUInt8(month_end <= {{ as_of_instant() }}) as is_ended,
    revenue,
    units_per_cent,
    {{ platform_fee_basis_points('revenue', 'units_per_cent', 'contract_basis_points') }} as fee_basis_points,
    {{ platform_fee_cents('revenue', 'units_per_cent', 'fee_basis_points', 'minimum_cents') }} as fee_cents,
    projected_revenue,
    {{ platform_fee_cents(
        'projected_revenue',
        'units_per_cent',
        platform_fee_basis_points('projected_revenue', 'units_per_cent', 'contract_basis_points'),
        'minimum_cents'
    ) }} as projected_fee_cents,
    toLowCardinality(lower(unit)) as currency
from projected
