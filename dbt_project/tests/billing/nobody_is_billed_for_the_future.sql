-- No line for a period that has not begun, none final that has not ended, and no movement after today.
select customer_id, 'line' as what, period_start as at
from {{ ref('invoice_lines') }}
where period_start >= {{ as_of_instant() }} or (is_final and period_end > {{ as_of_instant() }})

union all

select customer_id, 'movement' as what, toDateTime64(movement_date, 6, 'UTC') as at
from {{ ref('mrr_movements') }}
where movement_date > {{ as_of_date() }}
