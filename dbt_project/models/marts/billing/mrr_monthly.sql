{{ config(order_by=['currency', 'month']) }}

with months as (

    select
        currency,
        addMonths(
            toStartOfMonth(min(movement_date)),
            arrayJoin(range(toUInt64(1 + dateDiff('month', min(movement_date), {{ as_of_date() }}))))
        ) as month
    from {{ ref('mrr_movements') }}
    group by currency

),

movements_by_month as (

    select
        currency,
        toStartOfMonth(movement_date) as month,
        sum(amount_cents) as net_cents,
        sumIf(amount_cents, movement_type = 'new') as new_cents,
        sumIf(amount_cents, movement_type = 'expansion') as expansion_cents,
        sumIf(amount_cents, movement_type = 'contraction') as contraction_cents,
        sumIf(amount_cents, movement_type = 'churn') as churn_cents,
        sumIf(amount_cents, movement_type = 'reactivation') as reactivation_cents,
        toInt64(countIf(mrr_before_cents = 0)) - toInt64(countIf(mrr_after_cents = 0)) as net_customers
    from {{ ref('mrr_movements') }}
    group by currency, month

)

select
    months.month as month,
    months.currency as currency,
    closing_cents - movements.net_cents as opening_cents,
    movements.new_cents as new_cents,
    movements.expansion_cents as expansion_cents,
    movements.contraction_cents as contraction_cents,
    movements.churn_cents as churn_cents,
    movements.reactivation_cents as reactivation_cents,
    sum(movements.net_cents) over (partition by months.currency order by months.month) as closing_cents,
    toUInt64(sum(movements.net_customers) over (partition by months.currency order by months.month)) as customers
from months
left join movements_by_month as movements
    on months.currency = movements.currency and months.month = movements.month
