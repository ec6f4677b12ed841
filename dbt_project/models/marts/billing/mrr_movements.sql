{{ config(order_by=['customer_id', 'currency', 'movement_date']) }}

with paying as (

    select *
    from {{ ref('int_subscription_terms') }}
    where
        status in ('active', 'past_due')
        and base_price_cents > 0
        -- Terms that follow a running trial are there before it has ended.
        and valid_from < {{ as_of_instant() }}

),

changes as (

    -- An interval adds on the day on which it begins and takes away on the day on which it ends, so that only what
    -- holds at the end of a day is left of that day.
    select customer_id, currency, toDate(valid_from, 'UTC') as movement_date, base_price_cents as change_cents
    from paying

    union all

    select
        customer_id,
        currency,
        toDate(assumeNotNull(valid_to), 'UTC') as movement_date,
        -base_price_cents as change_cents
    from paying
    where valid_to < {{ as_of_instant() }}

),

changes_by_day as (

    -- By currency, since amounts of two are never added.
    select customer_id, currency, movement_date, sum(change_cents) as amount_cents
    from changes
    group by customer_id, currency, movement_date
    having amount_cents != 0

),

running as (

    select
        *,
        sum(amount_cents) over (partition by customer_id, currency order by movement_date) as mrr_after_cents,
        mrr_after_cents - amount_cents as mrr_before_cents,
        row_number() over (partition by customer_id, currency order by movement_date) as number
    from changes_by_day

)

select
    customer_id,
    movement_date,
    toLowCardinality(multiIf(
        number = 1, 'new',
        mrr_before_cents = 0, 'reactivation',
        mrr_after_cents = 0, 'churn',
        amount_cents > 0, 'expansion',
        'contraction'
    )) as movement_type,
    mrr_before_cents,
    mrr_after_cents,
    amount_cents,
    toLowCardinality(currency) as currency
from running
