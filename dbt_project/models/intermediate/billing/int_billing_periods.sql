{{ config(order_by=['customer_id', 'subscription_id', 'period_start']) }}

with subscriptions as (

    select
        *,
        coalesce(trial_end, started_at) as anchor,
        least(coalesce(cancelled_at, {{ as_of_instant() }}), {{ as_of_instant() }}) as last_instant
    from {{ ref('stg_subscriptions') }}
    where started_at < {{ as_of_instant() }}

),

scheduled as (

    -- The trial is a period of its own. Months count from the anchor and never from the month before, so that
    -- the 31st comes back after a February.
    select
        *,
        arrayJoin(arrayConcat(
            if(trial_end is null, [], [(started_at, assumeNotNull(trial_end), true)]),
            arrayMap(
                month -> (addMonths(anchor, month), addMonths(anchor, month + 1), false),
                range(toUInt64(greatest(0, 1 + dateDiff('month', anchor, last_instant))))
            )
        )) as period
    from subscriptions

)

select
    customer_id,
    subscription_id,
    period.1 as period_start,
    coalesce(least(period.2, cancelled_at), period.2) as period_end,
    period.2 as scheduled_end,
    toUInt8(period.3) as is_trial,
    toUInt8(period_end <= {{ as_of_instant() }}) as is_ended
from scheduled
where period.1 < last_instant
