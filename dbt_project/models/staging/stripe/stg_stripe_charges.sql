select
    object_id as charge_id,
    {{ stripe_reference('customer') }} as stripe_customer_id,
    {{ stripe_reference('payment_intent') }} as payment_intent_id,
    {{ stripe_text('payment_method') }} as payment_method_id,
    {{ stripe_text('status') }} as status,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('amount') }} as amount_cents,
    {{ stripe_integer('amount_captured') }} as amount_captured_cents,
    {{ stripe_integer('amount_refunded') }} as amount_refunded_cents,
    {{ stripe_flag('paid') }} as is_paid,
    {{ stripe_flag('captured') }} as is_captured,
    {{ stripe_flag('refunded') }} as is_refunded,
    {{ stripe_flag('disputed') }} as is_disputed,
    {{ stripe_text('failure_code') }} as failure_code,
    {{ stripe_text('failure_message') }} as failure_message,
    {{ stripe_text('outcome', 'type') }} as outcome_type,
    {{ stripe_text('outcome', 'reason') }} as outcome_reason,
    {{ stripe_text('outcome', 'network_decline_code') }} as network_decline_code,
    {{ stripe_text('outcome', 'network_advice_code') }} as network_advice_code,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'charge' and not is_deleted
