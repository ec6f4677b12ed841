{{ config(order_by=['month', 'attempt_number']) }}

with attempts as (

    select
        *,
        minIf(attempt_number, status = 'failed') over (partition by invoice_id) as first_failed_attempt,
        minIf(occurred_at, status = 'failed') over (partition by invoice_id) as first_failed_at,
        -- Without any failure the two above are zero.
        countIf(status = 'failed') over (partition by invoice_id) > 0
        and attempt_number > first_failed_attempt as is_retry
    from {{ ref('stg_payments') }}
    where toDate(occurred_at, 'UTC') <= {{ as_of_date() }}

)

select
    toStartOfMonth(toDate(occurred_at, 'UTC')) as month,
    attempt_number,
    count() as attempts,
    countIf(status = 'failed') as failed,
    failed / attempts as failed_rate,
    countIf(is_retry) as retries,
    countIf(is_retry and status = 'succeeded') as recovered,
    if(retries > 0, recovered / retries, null) as recovery_rate,
    if(
        recovered > 0,
        avgIf(dateDiff('microsecond', first_failed_at, occurred_at), is_retry and status = 'succeeded') / 86400000000,
        null
    ) as mean_days_to_recovery
from attempts
group by month, attempt_number
