{{ config(order_by=['currency', 'month']) }}

with amounts as (

    select revenue_month as month, currency, toString(line_type) as kind, amount_cents
    from {{ ref('invoice_lines') }}

    union all

    select toStartOfMonth(occurred_at) as month, currency, 'collected' as kind, amount_cents
    from {{ ref('payments') }}
    where status = 'succeeded'

)

select
    month,
    currency,
    sumIf(amount_cents, kind = 'subscription') as subscription_cents,
    sumIf(amount_cents, kind = 'overage') as overage_cents,
    sumIf(amount_cents, kind = 'platform_fee') as platform_fee_cents,
    subscription_cents + overage_cents + platform_fee_cents as revenue_cents,
    sumIf(amount_cents, kind = 'collected') as collected_cents,
    toUInt8(toDateTime64(addMonths(month, 1), 6, 'UTC') <= {{ as_of_instant() }}) as is_ended
from amounts
where month <= {{ as_of_date() }}
group by month, currency
