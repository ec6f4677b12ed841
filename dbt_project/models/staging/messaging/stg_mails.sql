select
    id as mail_id,
    substring(event_type, length('email.') + 1) as email_type,
    customer_id,
    created_at as queued_at,
    outcome,
    processed_at,
    snapshot_at
from {{ source('raw', 'events') }} final
where startsWith(event_type, 'email.')
