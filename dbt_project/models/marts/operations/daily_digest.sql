{{ config(order_by=['digest_date']) }}

with known_from as (

    select
        min(known_since) as first_day,
        if(count() = 0, 0, 1 + dateDiff('day', first_day, {{ as_of_date() }})) as days
    from {{ ref('int_customer_usage') }}

),

days as (

    -- Every day since anybody is known, as_of_date included, of which the row is what it came to so far.
    select first_day + arrayJoin(range(toUInt64(days))) as digest_date
    from known_from

),

first_plans as (

    select customer_id, argMin(toString(plan_type), (valid_from, subscription_id)) as plan_type
    from {{ ref('int_subscription_terms') }}
    group by customer_id

),

sign_ups as (

    select
        signed_up_on,
        sum(customers) as sign_ups,
        mapSort(mapFromArrays(groupArray(plan), groupArray(customers))) as sign_ups_by_plan
    from (
        select
            usage.signed_up_on as signed_up_on,
            if(first_plans.customer_id = '', 'none', first_plans.plan_type) as plan,
            count() as customers
        from {{ ref('int_customer_usage') }} as usage
        left join first_plans
            on usage.customer_id = first_plans.customer_id
        group by signed_up_on, plan
    )
    group by signed_up_on

),

integrations as (

    select toDate(occurred_at, 'UTC') as integrated_on, count() as integrations
    from {{ ref('onboarding') }}
    where step = 'first_request'
    group by integrated_on

),

subscription_moves as (

    -- By what the end of each day differs from the end of the day before.
    select
        move.1 as moved_on,
        status,
        currency,
        sum(move.2) as subscriptions,
        sum(move.2 * (base_price_cents > 0)) as paid_subscriptions,
        sum(move.2 * base_price_cents) as cents
    from (
        select
            toString(status) as status,
            toString(currency) as currency,
            base_price_cents,
            arrayJoin(arrayConcat(
                [(toDate(valid_from, 'UTC'), toInt64(1))],
                -- An end or the end of a trial later today has not come.
                if(valid_to < {{ as_of_instant() }}, [(toDate(assumeNotNull(valid_to), 'UTC'), toInt64(-1))], [])
            )) as move
        from {{ ref('int_subscription_terms') }}
        where valid_from < {{ as_of_instant() }}
    )
    group by moved_on, status, currency

),

open_subscriptions as (

    select
        days.digest_date as digest_date,
        move.status as status,
        move.currency as currency,
        sum(move.subscriptions) as subscriptions,
        sumIf(move.paid_subscriptions, move.status in ('active', 'past_due')) as paying,
        sumIf(move.cents, move.status in ('active', 'past_due')) as mrr
    from days
    cross join subscription_moves as move
    where move.moved_on <= days.digest_date
    group by digest_date, status, currency

),

subscriptions as (

    select
        digest_date,
        {{ nonzero_map('status', 'subscriptions') }} as subscriptions_by_status,
        sum(paying) as paying_customers,
        {{ nonzero_map('currency', 'mrr') }} as mrr_cents
    from open_subscriptions
    group by digest_date

),

cancellations as (

    select toDate(cancelled_at, 'UTC') as cancelled_on, count() as cancellations
    from {{ ref('stg_subscriptions') }}
    where cancelled_at < {{ as_of_instant() }}
    group by cancelled_on

),

payments as (

    select
        toDate(occurred_at, 'UTC') as paid_on,
        toString(currency) as currency,
        countIf(status = 'succeeded') as succeeded,
        countIf(status = 'failed') as failed,
        sumIf(amount_cents, status = 'succeeded') as collected,
        sumIf(amount_cents, status = 'failed') as refused
    from {{ ref('stg_payments') }}
    group by paid_on, currency

),

money as (

    -- By currency, since amounts of two are never added.
    select
        days.digest_date as digest_date,
        payments.paid_on = days.digest_date as is_today,
        payments.currency as currency,
        payments.succeeded * is_today as succeeded,
        payments.failed * is_today as failed,
        payments.collected * is_today as collected,
        payments.refused * is_today as refused,
        payments.collected as collected_this_month
    from days
    inner join payments
        on toStartOfMonth(days.digest_date) = toStartOfMonth(payments.paid_on)
    where payments.paid_on <= days.digest_date

),

money_by_day as (

    select
        digest_date,
        sum(succeeded) as payments_succeeded,
        sum(failed) as payments_failed,
        {{ nonzero_map('currency', 'collected') }} as collected_cents,
        {{ nonzero_map('currency', 'refused') }} as failed_cents,
        {{ nonzero_map('currency', 'collected_this_month') }} as collected_month_to_date_cents
    from money
    group by digest_date

),

forecast as (

    select
        month,
        {{ nonzero_map('toString(currency)', 'forecast_cents') }} as revenue_forecast_cents
    from {{ ref('revenue_forecast') }}
    group by month

),

usage as (

    select
        daily.usage_date as usage_date,
        uniqExactIf(daily.customer_id, metric.kind = 'usage' and daily.quantity > 0) as active_customers,
        {{ nonzero_map('toString(daily.metric_type)', 'daily.quantity') }} as quantities
    from {{ ref('usage_daily') }} as daily
    inner join {{ ref('metric_catalogue') }} as metric
        on daily.metric_type = metric.metric_type
    where daily.usage_date <= {{ as_of_date() }}
    group by usage_date

)

select
    days.digest_date as digest_date,
    toUInt8(days.digest_date < {{ as_of_date() }}) as is_complete,
    sign_ups.sign_ups as sign_ups,
    sign_ups.sign_ups_by_plan as sign_ups_by_plan,
    integrations.integrations as integrations,
    usage.active_customers as active_customers,
    subscriptions.subscriptions_by_status as subscriptions_by_status,
    subscriptions.paying_customers as paying_customers,
    subscriptions.mrr_cents as mrr_cents,
    cancellations.cancellations as cancellations,
    money_by_day.payments_succeeded as payments_succeeded,
    money_by_day.payments_failed as payments_failed,
    money_by_day.collected_cents as collected_cents,
    money_by_day.failed_cents as failed_cents,
    money_by_day.collected_month_to_date_cents as collected_month_to_date_cents,
    forecast.revenue_forecast_cents as revenue_forecast_cents,
    usage.quantities as quantities,
    usage.quantities['impressions'] as impressions,
    usage.quantities['api_calls'] as api_calls,
    usage.quantities['support_tickets'] as support_tickets,
    usage.quantities['sdk_errors'] as sdk_errors,
    if(api_calls > 0, sdk_errors / api_calls, null) as error_rate
from days
left join sign_ups
    on days.digest_date = sign_ups.signed_up_on
left join integrations
    on days.digest_date = integrations.integrated_on
left join subscriptions
    on days.digest_date = subscriptions.digest_date
left join cancellations
    on days.digest_date = cancellations.cancelled_on
left join money_by_day
    on days.digest_date = money_by_day.digest_date
left join usage
    on days.digest_date = usage.usage_date
left join forecast
    on toStartOfMonth(days.digest_date) = forecast.month
