{{ config(order_by=['week', 'source']) }}

with steps as (

    select
        customer_id,
        max(startsWith(step, 'sdk_downloaded.')) as has_downloaded,
        max(step = 'first_request') as has_request,
        max(step = 'first_impression') as has_impression
    from {{ ref('onboarding') }}
    where toDate(occurred_at, 'UTC') <= {{ as_of_date() }}
    group by customer_id

),

trials as (

    select distinct customer_id, subscription_id
    from {{ ref('stg_subscriptions') }}
    where trial_end is not null and started_at < {{ as_of_instant() }}

),

converted_trials as (

    select distinct trials.customer_id as customer_id
    from {{ ref('int_subscription_terms') }} as terms
    inner join trials
        on terms.subscription_id = trials.subscription_id
    where
        terms.status in ('active', 'past_due')
        and terms.base_price_cents > 0
        and terms.valid_from < {{ as_of_instant() }}

),

payers as (

    select distinct customer_id
    from {{ ref('stg_payments') }}
    where status = 'succeeded' and amount_cents > 0 and toDate(occurred_at, 'UTC') <= {{ as_of_date() }}

)

select
    toMonday(toDate(customer.created_at, 'UTC')) as week,
    customer.source as source,
    count() as signed_up,
    countIf(steps.has_downloaded) as downloaded,
    countIf(steps.has_request) as sent_request,
    countIf(steps.has_impression) as showed_impression,
    countIf(customer.customer_id in (select customer_id from trials)) as began_trial,
    countIf(customer.customer_id in (select customer_id from converted_trials)) as converted_trial,
    countIf(customer.customer_id in (select customer_id from payers)) as paid
from {{ ref('stg_customers') }} as customer
left join steps
    on customer.customer_id = steps.customer_id
where toDate(customer.created_at, 'UTC') <= {{ as_of_date() }}
group by week, source
