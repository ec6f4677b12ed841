-- A billing period is one invoice line, which adds the prices of its days: a subscription whose terms change currency
-- would add amounts of two. Names the customers of such subscriptions.
select
    subscription_id,
    any(customer_id) as customer_id,
    groupUniqArray(currency) as currencies
from {{ ref('stg_subscription_changes') }}
group by subscription_id
having length(currencies) > 1
