-- Tested together with these, so they stand before whatever reads invoices.
-- depends_on: {{ ref('stg_stripe_invoice_lines') }}
-- depends_on: {{ ref('stg_stripe_charges') }}
-- depends_on: {{ ref('stg_stripe_refunds') }}
-- depends_on: {{ ref('stg_stripe_disputes') }}
-- depends_on: {{ ref('stg_stripe_credits') }}
select
    object_id as invoice_id,
    {{ stripe_reference('customer') }} as stripe_customer_id,
    {{ stripe_reference('parent', 'subscription_details', 'subscription') }} as subscription_id,
    {{ stripe_text('number') }} as invoice_number,
    {{ stripe_text('status') }} as status,
    {{ stripe_text('billing_reason') }} as billing_reason,
    {{ stripe_text('collection_method') }} as collection_method,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('subtotal') }} as subtotal_cents,
    {{ stripe_integer('total_excluding_tax') }} as total_excluding_tax_cents,
    {{ stripe_integer('total') }} as total_cents,
    {{ stripe_integer('amount_due') }} as amount_due_cents,
    {{ stripe_integer('amount_paid') }} as amount_paid_cents,
    {{ stripe_integer('amount_remaining') }} as amount_remaining_cents,
    {{ stripe_integer('pre_payment_credit_notes_amount') }} as pre_payment_credit_notes_cents,
    {{ stripe_integer('post_payment_credit_notes_amount') }} as post_payment_credit_notes_cents,
    {{ stripe_integer('starting_balance') }} as starting_balance_cents,
    {{ stripe_integer('ending_balance') }} as ending_balance_cents,
    {{ stripe_integer('attempt_count') }} as attempt_count,
    {{ stripe_time('next_payment_attempt') }} as next_payment_attempt_at,
    {{ stripe_text('hosted_invoice_url') }} as hosted_invoice_url,
    {{ stripe_time('period_start') }} as period_start,
    {{ stripe_time('period_end') }} as period_end,
    {{ stripe_time('created') }} as created_at,
    {{ stripe_time('due_date') }} as due_at,
    {{ stripe_time('status_transitions', 'finalized_at') }} as finalized_at,
    {{ stripe_time('status_transitions', 'paid_at') }} as paid_at,
    {{ stripe_time('status_transitions', 'marked_uncollectible_at') }} as marked_uncollectible_at,
    {{ stripe_time('status_transitions', 'voided_at') }} as voided_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'invoice' and not is_deleted
