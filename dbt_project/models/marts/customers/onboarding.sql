with usage_steps as (

    select
        customer_id,
        minIf(first_telemetry_at, has_telemetry) as first_request_at,
        minIf(first_impression_at, impressions > 0) as first_impression_at,
        max(has_telemetry) as has_request,
        max(impressions > 0) as has_impression
    from {{ ref('int_customer_days') }}
    group by customer_id

)

select
    customer_id,
    toLowCardinality('signed_up') as step,
    created_at as occurred_at
from {{ ref('stg_customers') }}

union all

select customer_id, toLowCardinality('first_request') as step, toDateTime64(first_request_at, 6, 'UTC') as occurred_at
from usage_steps
where has_request

union all

select
    customer_id,
    toLowCardinality('first_impression') as step,
    toDateTime64(first_impression_at, 6, 'UTC') as occurred_at
from usage_steps
where has_impression

union all

select
    customer_id,
    toLowCardinality(concat('sdk_downloaded.', download.1)) as step,
    toDateTime64(download.2, 6, 'UTC') as occurred_at
from (
    select customer_id, arrayJoin(arrayZip(mapKeys(first_downloads), mapValues(first_downloads))) as download
    from {{ ref('int_customer_life') }}
)
