select
    object_id as product_id,
    {{ stripe_text('name') }} as product_name,
    {{ stripe_flag('active') }} as is_active,
    {{ stripe_reference('default_price') }} as default_price_id,
    {{ stripe_text('unit_label') }} as unit_label,
    {{ stripe_time('created') }} as created_at,
    {{ stripe_time('updated') }} as updated_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'product' and not is_deleted
