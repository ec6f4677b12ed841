select
    customer_id,
    event_id,
    metric_type,
    quantity,
    event_time,
    accepted_at,
    metadata,
    corrects_event_id,
    correction_reason,
    historical,
    batch_id,
    batch_row,
    loaded_at
from {{ source('raw', 'usage_events') }}
