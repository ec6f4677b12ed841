{{ config(order_by=['currency', 'cohort_month', 'months_since']) }}

with cohort_members as (

    select
        customer_id,
        currency,
        toStartOfMonth(movement_date) as cohort_month
    from {{ ref('mrr_movements') }}
    where movement_type = 'new'

),

movements as (

    select
        members.cohort_month as cohort_month,
        movement.currency as currency,
        toStartOfMonth(movement.movement_date) as month,
        sum(movement.amount_cents) as net_cents,
        toInt64(countIf(movement.mrr_before_cents = 0))
        - toInt64(countIf(movement.mrr_after_cents = 0)) as net_customers,
        countIf(movement.movement_type = 'new') as new_customers,
        sumIf(movement.amount_cents, movement.movement_type = 'new') as new_cents
    from {{ ref('mrr_movements') }} as movement
    inner join cohort_members as members
        on movement.customer_id = members.customer_id and movement.currency = members.currency
    group by cohort_month, currency, month

),

months as (

    select
        currency,
        cohort_month,
        sum(new_customers) as customers,
        sum(new_cents) as starting_mrr_cents,
        arrayJoin(range(toUInt64(1 + dateDiff('month', cohort_month, {{ as_of_date() }})))) as months_since,
        addMonths(cohort_month, months_since) as month
    from movements
    group by currency, cohort_month

)

select
    months.cohort_month as cohort_month,
    toUInt16(months.months_since) as months_since,
    months.month as month,
    months.currency as currency,
    months.customers as customers,
    toUInt64(sum(movements.net_customers) over cohort) as retained_customers,
    retained_customers / customers as logo_retention,
    months.starting_mrr_cents as starting_mrr_cents,
    sum(movements.net_cents) over cohort as mrr_cents,
    mrr_cents / starting_mrr_cents as revenue_retention
from months
left join movements
    on
        months.currency = movements.currency
        and months.cohort_month = movements.cohort_month
        and months.month = movements.month
window cohort as (partition by months.currency, months.cohort_month order by months.month)
