select
    object_id as payment_method_id,
    {{ stripe_reference('customer') }} as stripe_customer_id,
    {{ stripe_text('type') }} as payment_method_type,
    {{ stripe_text('card', 'brand') }} as card_brand,
    {{ stripe_text('card', 'funding') }} as card_funding,
    {{ stripe_text('card', 'country') }} as card_country,
    {{ stripe_text('card', 'last4') }} as card_last4,
    {{ stripe_integer('card', 'exp_month') }} as card_exp_month,
    {{ stripe_integer('card', 'exp_year') }} as card_exp_year,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'payment_method' and not is_deleted
