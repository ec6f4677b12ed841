-- No line for a period that has not begun, and none final that has not ended.
select customer_id, period_start, period_end
from {{ ref('invoice_lines') }}
where period_start >= {{ as_of_instant() }} or (is_final and period_end > {{ as_of_instant() }})
