{{ config(materialized='view', schema='default') }}

select
    event.customer_id as customer_id,
    event.metric_type as metric_type,
    toDecimal128(event.quantity, 9) / intExp10(metric.scale) as quantity,
    event.event_time as recorded_at,
    event.metadata as metadata
from {{ ref('int_usage_events') }} as event
left join {{ ref('metric_catalogue') }} as metric
    on event.metric_type = metric.metric_type
