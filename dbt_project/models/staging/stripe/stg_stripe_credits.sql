-- Both are money that the customer need not pay. Stripe writes a movement of the balance from our side, where
-- negative is in the customer's favour, and a grant from the customer's.
with balance_transactions as (
    select
        object_id as credit_id,
        object as credit_type,
        {{ stripe_reference('customer') }} as stripe_customer_id,
        {{ stripe_text('type') }} as reason,
        {{ stripe_text('currency') }} as currency,
        -{{ stripe_integer('amount') }} as amount_cents,
        {{ stripe_reference('invoice') }} as invoice_id,
        {{ stripe_time('created') }} as created_at,
        {{ stripe_time('created') }} as effective_at,
        toDateTime64(null, 6, 'UTC') as expires_at,
        toDateTime64(null, 6, 'UTC') as voided_at,
        fetched_at
    from {{ ref('stg_stripe_objects') }}
    where object = 'customer_balance_transaction' and not is_deleted
),

grants as (
    select
        object_id as credit_id,
        object as credit_type,
        {{ stripe_reference('customer') }} as stripe_customer_id,
        {{ stripe_text('category') }} as reason,
        {{ stripe_text('amount', 'monetary', 'currency') }} as currency,
        {{ stripe_integer('amount', 'monetary', 'value') }} as amount_cents,
        cast(null as Nullable(String)) as invoice_id,
        {{ stripe_time('created') }} as created_at,
        {{ stripe_time('effective_at') }} as effective_at,
        {{ stripe_time('expires_at') }} as expires_at,
        {{ stripe_time('voided_at') }} as voided_at,
        fetched_at
    from {{ ref('stg_stripe_objects') }}
    where object = 'billing.credit_grant' and not is_deleted
)

select * from balance_transactions
union all
select * from grants
