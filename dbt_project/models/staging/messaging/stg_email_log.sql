select
    id as email_log_id,
    event_id,
    customer_id,
    email_type,
    recipient,
    subject,
    provider,
    sent_at,
    snapshot_at
from {{ source('raw', 'email_log') }}
