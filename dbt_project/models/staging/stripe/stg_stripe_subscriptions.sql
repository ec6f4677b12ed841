select
    object_id as subscription_id,
    {{ stripe_reference('customer') }} as stripe_customer_id,
    {{ stripe_text('metadata', 'subscription_id') }} as local_subscription_id,
    {{ stripe_text('status') }} as status,
    {{ stripe_text('collection_method') }} as collection_method,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_reference('default_payment_method') }} as default_payment_method_id,
    {{ stripe_reference('latest_invoice') }} as latest_invoice_id,
    {{ stripe_text('pause_collection', 'behavior') }} as pause_behavior,
    {{ stripe_time('billing_cycle_anchor') }} as billing_cycle_anchor,
    {{ stripe_time('created') }} as created_at,
    {{ stripe_time('start_date') }} as started_at,
    {{ stripe_time('trial_start') }} as trial_start,
    {{ stripe_time('trial_end') }} as trial_end,
    {{ stripe_flag('cancel_at_period_end') }} as is_cancel_at_period_end,
    {{ stripe_time('cancel_at') }} as cancel_at,
    {{ stripe_time('canceled_at') }} as cancelled_at,
    {{ stripe_time('ended_at') }} as ended_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'subscription' and not is_deleted
