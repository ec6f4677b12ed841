with lines as (
    {{ stripe_nested_objects('line_item', 'invoice', 'lines') | indent(4) }}
),

-- Of the forms that a parent can have, the one that counts is named by its type.
lines_with_parent as (
    select
        *,
        {{ stripe_text('parent', 'type') }} as parent_type,
        JSONExtractRaw(payload, 'parent', coalesce(parent_type, '')) as parent
    from lines
)

select
    object_id as invoice_line_id,
    parent_id as invoice_id,
    parent_type,
    {{ stripe_reference('subscription', of='parent') }} as subscription_id,
    {{ stripe_reference('subscription_item', of='parent') }} as subscription_item_id,
    {{ stripe_reference('invoice_item', of='parent') }} as invoice_item_id,
    {{ stripe_reference('pricing', 'price_details', 'price') }} as price_id,
    {{ stripe_reference('pricing', 'price_details', 'product') }} as product_id,
    {{ stripe_text('description') }} as description,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('amount') }} as amount_cents,
    if(
        JSONType(payload, 'discount_amounts') = 'Array',
        arraySum(discount -> JSONExtractInt(discount, 'amount'), JSONExtractArrayRaw(payload, 'discount_amounts')),
        null
    ) as discount_cents,
    {{ stripe_integer('quantity') }} as quantity,
    {{ stripe_decimal('quantity_decimal') }} as quantity_decimal,
    {{ stripe_decimal('pricing', 'unit_amount_decimal') }} as unit_amount_decimal_cents,
    {{ stripe_flag('proration', of='parent') }} as is_proration,
    {{ stripe_time('period', 'start') }} as period_start,
    {{ stripe_time('period', 'end') }} as period_end,
    fetched_at
from lines_with_parent
