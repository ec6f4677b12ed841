-- Each label belongs to a row of features; one without could never be learnt from.
select customer_id, feature_date
from {{ ref('churn_labels') }}
where (customer_id, feature_date) not in (select customer_id, feature_date from {{ ref('churn_features') }})
