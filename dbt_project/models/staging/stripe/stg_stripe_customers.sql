select
    object_id as stripe_customer_id,
    {{ stripe_text('metadata', 'customer_id') }} as customer_id,
    {{ stripe_text('name') }} as customer_name,
    {{ stripe_text('email') }} as email,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('balance') }} as balance_cents,
    {{ stripe_flag('delinquent') }} as is_delinquent,
    {{ stripe_reference('invoice_settings', 'default_payment_method') }} as default_payment_method_id,
    {{ stripe_time('created') }} as created_at,
    is_deleted,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'customer'
