select
    id as log_id,
    event_id as mail_id,
    customer_id,
    email_type,
    provider,
    provider_message_id,
    sent_at,
    snapshot_at
from {{ source('raw', 'email_log') }} final
