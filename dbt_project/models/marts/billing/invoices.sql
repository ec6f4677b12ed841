{{ config(order_by=['customer_id', 'invoice_id']) }}

with attempts_by_invoice as (

    select
        invoice_id,
        any(payment.customer_id) as customer_id,
        argMax(payment.amount_cents, attempt_number) as amount_cents,
        argMax(payment.currency, attempt_number) as currency,
        count() as attempts,
        min(occurred_at) as first_attempt_at,
        max(occurred_at) as last_attempt_at,
        sumIf(payment.amount_cents, status = 'succeeded') as paid_cents,
        minOrNullIf(occurred_at, status = 'succeeded') as paid_at
    from {{ ref('payments') }} as payment
    group by invoice_id

)

select
    invoice.invoice_id as invoice_id,
    invoice.customer_id as customer_id,
    toLowCardinality(multiIf(
        invoice.paid_at is not null, 'paid',
        -- Dunning suspends after the last failure; who is suspended or gone is asked no more.
        subscription.is_open and subscription.status != 'suspended', 'open',
        'uncollectible'
    )) as status,
    invoice.amount_cents as amount_cents,
    invoice.paid_cents as paid_cents,
    toLowCardinality(invoice.currency) as currency,
    invoice.attempts as attempts,
    invoice.first_attempt_at as first_attempt_at,
    invoice.last_attempt_at as last_attempt_at,
    invoice.paid_at as paid_at,
    dateDiff('day', toDate(invoice.first_attempt_at, 'UTC'), toDate(invoice.paid_at, 'UTC')) as days_to_pay
from attempts_by_invoice as invoice
left join {{ ref('int_current_subscriptions') }} as subscription
    on invoice.customer_id = subscription.customer_id
