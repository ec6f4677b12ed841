select
    customer_id,
    stripe_customer_id,
    toString(line_type) as line_type,
    toString(metric_type) as metric_type,
    period_start,
    period_end,
    number,
    amount_cents,
    toString(currency) as currency,
    toString(state) as state,
    stripe_id as invoice_item_id,
    created_at,
    settled_at,
    error_message
from {{ source('raw', 'stripe_invoice_ledger') }} final
where livemode = {{ var('stripe_livemode') }}
