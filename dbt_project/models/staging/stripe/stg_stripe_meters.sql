select
    object_id as meter_id,
    {{ stripe_text('display_name') }} as meter_name,
    {{ stripe_text('event_name') }} as event_name,
    {{ stripe_text('status') }} as status,
    {{ stripe_text('default_aggregation', 'formula') }} as aggregation_formula,
    {{ stripe_text('event_time_window') }} as event_time_window,
    {{ stripe_text('customer_mapping', 'event_payload_key') }} as customer_payload_key,
    {{ stripe_text('value_settings', 'event_payload_key') }} as value_payload_key,
    {{ stripe_time('created') }} as created_at,
    {{ stripe_time('updated') }} as updated_at,
    {{ stripe_time('status_transitions', 'deactivated_at') }} as deactivated_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'billing.meter' and not is_deleted
