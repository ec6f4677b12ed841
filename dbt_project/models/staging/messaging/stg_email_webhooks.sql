-- A webhook that says nothing of a mail has an empty provider_message_id.
select
    id as webhook_id,
    provider,
    event_type,
    JSONExtractString(payload, 'data', 'email_id') as provider_message_id,
    received_at,
    snapshot_at
from {{ source('raw', 'webhook_inbox') }} final
where provider = 'resend' and startsWith(event_type, 'email.')
