-- One test for all, since each costs a run its time. A warning: Stripe may add a state any day, and money that is
-- in a known one must still be counted.
with statuses as (
    select
        'subscription' as object,
        subscription_id as object_id,
        status,
        ['incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'canceled', 'unpaid', 'paused'] as known
    from {{ ref('stg_stripe_subscriptions') }}
    union all
    select 'invoice', invoice_id, status, ['draft', 'open', 'paid', 'uncollectible', 'void']
    from {{ ref('stg_stripe_invoices') }}
    union all
    select 'charge', charge_id, status, ['succeeded', 'pending', 'failed']
    from {{ ref('stg_stripe_charges') }}
    union all
    select 'refund', refund_id, status, ['pending', 'requires_action', 'succeeded', 'failed', 'canceled']
    from {{ ref('stg_stripe_refunds') }}
    union all
    select
        'dispute',
        dispute_id,
        status,
        [
            'warning_needs_response', 'warning_under_review', 'warning_closed', 'needs_response', 'under_review',
            'won', 'lost', 'prevented'
        ]
    from {{ ref('stg_stripe_disputes') }}
    union all
    select 'billing.meter', meter_id, status, ['active', 'inactive']
    from {{ ref('stg_stripe_meters') }}
)

select object, object_id, status
from statuses
where not coalesce(has(known, status), false)
