select
    object_id as dispute_id,
    {{ stripe_reference('charge') }} as charge_id,
    {{ stripe_reference('payment_intent') }} as payment_intent_id,
    {{ stripe_text('status') }} as status,
    {{ stripe_text('reason') }} as reason,
    {{ stripe_text('currency') }} as currency,
    {{ stripe_integer('amount') }} as amount_cents,
    {{ stripe_flag('is_charge_refundable') }} as is_charge_refundable,
    {{ stripe_time('evidence_details', 'due_by') }} as evidence_due_at,
    {{ stripe_time('created') }} as created_at,
    fetched_at
from {{ ref('stg_stripe_objects') }}
where object = 'dispute' and not is_deleted
