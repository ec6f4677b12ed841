select
    id as customer_id,
    name as customer_name,
    email,
    company_size,
    country,
    source,
    external_ref,
    created_at,
    snapshot_at
from {{ source('raw', 'customers') }} final
