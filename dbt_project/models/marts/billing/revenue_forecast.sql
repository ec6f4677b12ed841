{{ config(order_by=['customer_id', 'line_type', 'currency']) }}

{%- set month_end = "toDateTime64(addMonths(toStartOfMonth(" ~ as_of_date() ~ "), 1), 6, 'UTC')" %}

with renewals as (

    -- As things stand, so that a trial goes over into paying and nobody leaves who has not said so.
    select
        period.customer_id as customer_id,
        terms.currency as currency,
        terms.base_price_cents as added_cents
    from {{ ref('int_billing_periods') }} as period
    inner join {{ ref('int_subscription_terms') }} as terms
        on period.subscription_id = terms.subscription_id
    where
        period.is_ended = 0
        and period.scheduled_end < {{ month_end }}
        and terms.next_change_at is null
        and coalesce(terms.valid_to > period.scheduled_end, true)
        and terms.status != 'suspended'

),

projected_overage as (

    select
        usage.customer_id as customer_id,
        allowance.currency as currency,
        usage.overage_quantity as overage_quantity,
        usage.included_quantity as included_quantity,
        allowance.overage_price_cents as price_cents,
        allowance.overage_price_quantity as price_quantity,
        {{ divide_half_even(
            "toInt256(usage.quantity) * dateDiff('microsecond', usage.period_start, usage.period_end)",
            "dateDiff('microsecond', usage.period_start, " ~ as_of_instant() ~ ")"
        ) }} as projected_quantity
    from {{ ref('usage_by_period') }} as usage
    inner join {{ ref('int_period_allowances') }} as allowance
        on
            usage.subscription_id = allowance.subscription_id
            and usage.period_start = allowance.period_start
            and usage.metric_type = allowance.metric_type
    where
        usage.is_ended = 0
        and usage.is_trial = 0
        and usage.period_end <= {{ month_end }}
        and usage.included_quantity > 0

),

parts as (

    select
        customer_id,
        toString(line_type) as line_type,
        currency,
        amount_cents as fixed_cents,
        toInt64(0) as added_cents
    from {{ ref('invoice_lines') }}
    where revenue_month = toStartOfMonth({{ as_of_date() }})

    union all

    select customer_id, 'subscription' as line_type, currency, toInt64(0) as fixed_cents, added_cents
    from renewals

    union all

    select
        customer_id,
        'overage' as line_type,
        currency,
        toInt64(0) as fixed_cents,
        {{ overage_cents(
            'greatest(0, projected_quantity - assumeNotNull(included_quantity))', 'price_cents', 'price_quantity'
        ) }} - {{ overage_cents('overage_quantity', 'price_cents', 'price_quantity') }} as added_cents
    from projected_overage

    union all

    select
        customer_id,
        'platform_fee' as line_type,
        currency,
        toInt64(0) as fixed_cents,
        projected_fee_cents - fee_cents as added_cents
    from {{ ref('int_platform_fees') }}
    where month = toStartOfMonth({{ as_of_date() }})

)

select
    customer_id,
    toLowCardinality(line_type) as line_type,
    toStartOfMonth({{ as_of_date() }}) as month,
    toLowCardinality(currency) as currency,
    sum(parts.fixed_cents) as fixed_cents,
    sum(parts.added_cents) as added_cents,
    fixed_cents + added_cents as forecast_cents
from parts
group by customer_id, line_type, currency
