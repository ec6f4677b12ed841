{{ config(materialized='view') }}

with item_lines as (

    select line.invoice_item_id as invoice_item_id, sum(line.amount_cents) as amount_cents
    from {{ ref('stg_stripe_invoice_lines') }} as line
    inner join {{ ref('stg_stripe_invoices') }} as invoice on line.invoice_id = invoice.invoice_id
    where line.invoice_item_id is not null and invoice.status != 'void'
    group by invoice_item_id

),

items as (

    select
        ledger.customer_id as customer_id,
        ledger.line_type as line_type,
        ledger.metric_type as metric_type,
        ledger.period_start as period_start,
        sum(ledger.amount_cents) as posted_cents,
        sum(ifNull(line.amount_cents, 0)) as invoiced_cents,
        countIf(ledger.state = 'pending') as pending_items,
        countIf(ledger.state = 'sent' and line.invoice_item_id is null) as waiting_items
    from {{ ref('stg_stripe_invoice_ledger') }} as ledger
    left join item_lines as line on ledger.invoice_item_id = line.invoice_item_id
    where ledger.state != 'rejected'
    group by customer_id, line_type, metric_type, period_start

)

select
    line.customer_id as customer_id,
    person.customer_name as customer_name,
    line.subscription_id as subscription_id,
    toLowCardinality(line.line_type) as line_type,
    toLowCardinality(line.metric_type) as metric_type,
    line.period_start as period_start,
    line.period_end as period_end,
    line.due_cents as due_cents,
    line.charged_cents as charged_cents,
    items.posted_cents as posted_cents,
    items.invoiced_cents as invoiced_cents,
    toLowCardinality(line.currency) as currency,
    multiIf(
        items.pending_items > 0, 'pending',
        isNull(line.charged_cents) and line.due_cents != items.posted_cents, 'not_charged_by_stripe',
        line.due_cents != ifNull(line.charged_cents, 0) + items.posted_cents, 'not_posted',
        items.waiting_items > 0, 'waits_for_the_next_invoice',
        items.posted_cents != items.invoiced_cents, 'invoice_differs',
        ''
    ) as cause,
    toUInt8(cause not in ('', 'waits_for_the_next_invoice')) as is_difference
from {{ ref('int_stripe_lines') }} as line
left join items
    on
        line.customer_id = items.customer_id
        and line.line_type = items.line_type
        and line.metric_type = items.metric_type
        and line.period_start = items.period_start
left join {{ ref('stg_customers') }} as person on line.customer_id = person.customer_id
settings join_use_nulls = 0
