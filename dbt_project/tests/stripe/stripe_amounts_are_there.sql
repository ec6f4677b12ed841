-- An amount that Stripe always sends is null when it had another type or didn't fit: it would be left out of a sum.
with amounts as (
    select 'invoice' as object, invoice_id as object_id, total_cents as amount_cents, currency
    from {{ ref('stg_stripe_invoices') }}
    union all
    select 'invoice', invoice_id, amount_paid_cents, currency
    from {{ ref('stg_stripe_invoices') }}
    union all
    select 'line_item', invoice_line_id, if(invoice_line_id = '' or invoice_id = '', null, amount_cents), currency
    from {{ ref('stg_stripe_invoice_lines') }}
    union all
    select 'charge', charge_id, amount_cents, currency
    from {{ ref('stg_stripe_charges') }}
    union all
    select 'refund', refund_id, amount_cents, currency
    from {{ ref('stg_stripe_refunds') }}
    union all
    select 'dispute', dispute_id, amount_cents, currency
    from {{ ref('stg_stripe_disputes') }}
    union all
    select 'customer_balance_transaction', credit_id, amount_cents, currency
    from {{ ref('stg_stripe_credits') }}
    where credit_type = 'customer_balance_transaction'
)

select object, object_id, amount_cents, currency
from amounts
where amount_cents is null or currency is null
