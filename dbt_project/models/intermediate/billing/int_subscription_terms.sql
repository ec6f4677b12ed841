{{ config(order_by=['subscription_id', 'valid_from']) }}

with changes as (

    -- The end comes from the subscription itself: cancelling changes no term.
    select
        *,
        leadInFrame(toNullable(effective_at)) over (
            partition by subscription_id order by effective_at, change_id
            rows between current row and unbounded following
        ) as next_change_at
    from {{ ref('stg_subscription_changes') }}
    where status != 'canceled' and effective_at < {{ as_of_instant() }}

),

intervals as (

    select
        changes.*,
        subscription.trial_end as trial_end,
        subscription.cancelled_at as cancelled_at,
        -- An interval that the end of a trial cuts is two; until then the status is the trial's.
        arrayJoin(
            if(
                trial_end is null,
                [(effective_at, next_change_at, false)],
                [
                    (effective_at, toNullable(coalesce(least(next_change_at, trial_end), trial_end)), true),
                    (greatest(effective_at, assumeNotNull(trial_end)), next_change_at, false)
                ]
            )
        ) as part
    from changes
    inner join {{ ref('stg_subscriptions') }} as subscription
        on changes.subscription_id = subscription.subscription_id

)

select
    subscription_id,
    customer_id,
    part.1 as valid_from,
    part.2 as next_change_at,
    multiIf(
        part.2 is null, cancelled_at,
        cancelled_at is null, part.2,
        least(part.2, cancelled_at)
    ) as valid_to,
    plan_type,
    toLowCardinality(multiIf(part.3, 'trialing', status = 'trialing', 'active', toString(status))) as status,
    base_price_cents,
    currency,
    included_impressions,
    included_api_calls,
    included_data_transfer_gb,
    platform_fee_basis_points,
    platform_fee_minimum_cents
from intervals
where
    -- Of several changes at one instant only the last one lasts.
    coalesce(part.1 < part.2, true)
    and coalesce(part.1 < cancelled_at, true)
