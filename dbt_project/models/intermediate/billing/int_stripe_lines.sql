{{ config(materialized='view') }}

with subscriptions as (

    select
        subscription.subscription_id as stripe_subscription_id,
        subscription.local_subscription_id as subscription_id,
        customer.customer_id as customer_id,
        subscription.started_at as billed_from,
        subscription.created_at as known_from,
        assumeNotNull(subscription.currency) as currency
    from {{ ref('stg_stripe_subscriptions') }} as subscription
    inner join {{ ref('stg_stripe_customers') }} as customer
        on subscription.stripe_customer_id = customer.stripe_customer_id
    where subscription.started_at is not null

),

customers as (

    select customer_id, min(billed_from) as billed_from
    from subscriptions
    group by customer_id

),

charged_lines as (

    select
        line.customer_id as customer_id,
        ifNull(line.subscription_id, '') as subscription_id,
        toString(line.line_type) as line_type,
        ifNull(toString(line.metric_type), '') as metric_type,
        line.period_start as period_start,
        line.period_end as period_end,
        line.amount_cents as due_cents,
        subscription.known_from as known_from,
        toString(line.currency) as currency
    from {{ ref('invoice_lines') }} as line
    inner join customers as customer on line.customer_id = customer.customer_id
    left join subscriptions as subscription on line.subscription_id = subscription.subscription_id
    where
        line.is_final
        and if(
            line.line_type = 'platform_fee',
            line.due_at > customer.billed_from,
            subscription.subscription_id != '' and line.period_start >= subscription.billed_from
        )

),

-- Use within what is included has no line, and may have had one that was posted: nothing is due any more.
unused_lines as (

    select
        used.customer_id as customer_id,
        used.subscription_id as subscription_id,
        'overage' as line_type,
        toString(used.metric_type) as metric_type,
        used.period_start as period_start,
        used.period_end as period_end,
        toInt64(0) as due_cents,
        subscription.known_from as known_from,
        subscription.currency as currency
    from {{ ref('usage_by_period') }} as used
    inner join subscriptions as subscription on used.subscription_id = subscription.subscription_id
    where
        used.is_ended
        and used.overage_quantity = 0
        and used.included_quantity is not null
        and used.period_start >= subscription.billed_from

),

due_lines as (

    select * from charged_lines
    union all
    select * from unused_lines

),

-- What Stripe charges by itself: the price of each month, and prorations of a change that was made there.
charges as (

    select
        subscription.subscription_id as subscription_id,
        assumeNotNull(line.period_start) as charged_from,
        sum(assumeNotNull(line.amount_cents)) as amount_cents
    from {{ ref('stg_stripe_invoice_lines') }} as line
    inner join {{ ref('stg_stripe_invoices') }} as invoice on line.invoice_id = invoice.invoice_id
    inner join {{ ref('stg_stripe_prices') }} as price on line.price_id = price.price_id
    inner join subscriptions as subscription on line.subscription_id = subscription.stripe_subscription_id
    where
        line.parent_type = 'subscription_item_details'
        and invoice.status != 'void'
        and price.usage_type = 'licensed'
        and line.period_start is not null
        and line.amount_cents is not null
    group by subscription_id, charged_from

),

charged_periods as (

    select
        due.subscription_id as subscription_id,
        due.period_start as period_start,
        sum(charge.amount_cents) as charged_cents
    from due_lines as due
    inner join charges as charge on due.subscription_id = charge.subscription_id
    where
        due.line_type = 'subscription'
        and charge.charged_from >= due.period_start
        and charge.charged_from < due.period_end
    group by subscription_id, period_start

)

select
    due.customer_id as customer_id,
    due.subscription_id as subscription_id,
    due.line_type as line_type,
    due.metric_type as metric_type,
    due.period_start as period_start,
    due.period_end as period_end,
    due.due_cents as due_cents,
    if(
        due.line_type = 'subscription' and charged.subscription_id = '',
        null,
        ifNull(charged.charged_cents, 0)
    ) as charged_cents,
    due.currency as currency
from due_lines as due
left join charged_periods as charged
    on
        due.subscription_id = charged.subscription_id
        and due.period_start = charged.period_start
        and due.line_type = 'subscription'
where
    due.line_type != 'subscription'
    or charged.subscription_id != ''
    -- A month that had begun when the subscription came to Stripe was charged before, unless Stripe says otherwise.
    or coalesce(due.period_start >= due.known_from, true)
settings join_use_nulls = 0
