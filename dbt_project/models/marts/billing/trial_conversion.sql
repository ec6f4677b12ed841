{{ config(order_by='month') }}

with first_paid as (

    select subscription_id, min(valid_from) as paid_from
    from {{ ref('int_subscription_terms') }}
    where status in ('active', 'past_due') and base_price_cents > 0
    group by subscription_id

),

trials as (

    select
        toStartOfMonth(subscription.started_at) as month,
        paid.subscription_id != '' and paid.paid_from < {{ as_of_instant() }} as is_converted,
        coalesce(least(subscription.trial_end, subscription.cancelled_at), subscription.trial_end) as trial_over_at,
        not is_converted and trial_over_at >= {{ as_of_instant() }} as is_running
    from {{ ref('stg_subscriptions') }} as subscription
    left join first_paid as paid
        on subscription.subscription_id = paid.subscription_id
    where subscription.trial_end is not null and subscription.started_at < {{ as_of_instant() }}

)

select
    month,
    count() as trials,
    countIf(is_running) as running,
    countIf(is_converted) as converted,
    countIf(not is_running and not is_converted) as ended,
    if(converted + ended = 0, null, converted / (converted + ended)) as conversion_rate
from trials
group by month
