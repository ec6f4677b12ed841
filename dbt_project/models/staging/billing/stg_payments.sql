select
    id as payment_id,
    customer_id,
    invoice_id,
    attempt_number,
    status,
    amount_cents,
    currency,
    failure_code,
    occurred_at,
    snapshot_at
from {{ source('raw', 'payments') }} final
