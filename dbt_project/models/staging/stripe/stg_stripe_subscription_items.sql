select
    object_id as subscription_item_id,
    parent_id as subscription_id,
    {{ stripe_reference('price') }} as price_id,
    {{ stripe_reference('price', 'product') }} as product_id,
    {{ stripe_integer('quantity') }} as quantity,
    {{ stripe_time('current_period_start') }} as current_period_start,
    {{ stripe_time('current_period_end') }} as current_period_end,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from (
    {{ stripe_nested_objects('subscription_item', 'subscription', 'items') | indent(4) }}
)
