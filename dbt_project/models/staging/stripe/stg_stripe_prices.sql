select
    object_id as price_id,
    {{ stripe_reference('product') }} as product_id,
    {{ stripe_flag('active') }} as is_active,
    {{ stripe_text('type') }} as price_type,
    {{ stripe_text('billing_scheme') }} as billing_scheme,
    {{ stripe_text('tiers_mode') }} as tiers_mode,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('unit_amount') }} as unit_amount_cents,
    {{ stripe_decimal('unit_amount_decimal') }} as unit_amount_decimal_cents,
    {{ stripe_integer('transform_quantity', 'divide_by') }} as quantity_divisor,
    {{ stripe_text('transform_quantity', 'round') }} as quantity_rounding,
    {{ stripe_text('recurring', 'interval') }} as recurring_interval,
    {{ stripe_integer('recurring', 'interval_count') }} as recurring_interval_count,
    {{ stripe_text('recurring', 'usage_type') }} as usage_type,
    {{ stripe_reference('recurring', 'meter') }} as meter_id,
    {{ stripe_text('lookup_key') }} as lookup_key,
    {{ stripe_text('nickname') }} as nickname,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'price' and not is_deleted
