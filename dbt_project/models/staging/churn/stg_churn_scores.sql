-- final: scoring a day again replaces its rows, and the engine does that only when it merges.
select
    customer_id,
    feature_date,
    model_version,
    probability,
    expected_profit,
    reasons,
    holdout,
    scored_at
from {{ source('ml', 'churn_scores') }} final
