-- No movement of recurring revenue after today.
select customer_id, movement_date
from {{ ref('mrr_movements') }}
where movement_date > {{ as_of_date() }}
