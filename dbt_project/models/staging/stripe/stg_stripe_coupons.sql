select
    object_id as coupon_id,
    {{ stripe_text('name') }} as coupon_name,
    {{ stripe_flag('valid') }} as is_valid,
    {{ stripe_decimal('percent_off') }} as percent_off,
    {{ stripe_integer('amount_off') }} as amount_off_cents,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_text('duration') }} as duration,
    {{ stripe_integer('duration_in_months') }} as duration_in_months,
    {{ stripe_integer('max_redemptions') }} as max_redemptions,
    {{ stripe_integer('times_redeemed') }} as times_redeemed,
    {{ stripe_time('redeem_by') }} as redeem_by,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'coupon' and not is_deleted
