{{ config(materialized='view') }}

select
    payment_id,
    customer_id,
    invoice_id,
    attempt_number,
    status,
    amount_cents,
    currency,
    failure_code,
    occurred_at
from {{ ref('stg_payments') }}
where occurred_at < {{ as_of_instant() }}
