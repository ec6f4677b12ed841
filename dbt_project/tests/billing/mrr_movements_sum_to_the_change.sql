-- A customer's movements in a currency add up to the MRR that the terms in force now say, and each begins where the
-- one before ended. Names the customers for whom they do not.
with movements as (

    select
        customer_id,
        currency,
        sum(amount_cents) as moved_cents,
        argMax(mrr_after_cents, movement_date) as last_cents,
        countIf(
            mrr_before_cents != previous_cents or mrr_after_cents - mrr_before_cents != amount_cents
        ) as gaps
    from (
        select
            *,
            lagInFrame(mrr_after_cents, 1, 0) over (
                partition by customer_id, currency order by movement_date
                rows between unbounded preceding and current row
            ) as previous_cents
        from {{ ref('mrr_movements') }}
    )
    group by customer_id, currency

),

present as (

    select customer_id, currency, sum(base_price_cents) as mrr_cents
    from {{ ref('int_subscription_terms') }}
    where
        status in ('active', 'past_due')
        and valid_from < {{ as_of_instant() }}
        and coalesce(valid_to >= {{ as_of_instant() }}, true)
    group by customer_id, currency

)

select
    if(movements.customer_id = '', present.customer_id, movements.customer_id) as customer_id,
    movements.moved_cents as moved_cents,
    present.mrr_cents as mrr_cents,
    movements.gaps as gaps
from movements
full outer join present
    on movements.customer_id = present.customer_id and movements.currency = present.currency
where moved_cents != mrr_cents or movements.last_cents != mrr_cents or gaps > 0
