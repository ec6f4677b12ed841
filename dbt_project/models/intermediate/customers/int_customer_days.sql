{{ config(materialized='view') }}

select
    usage.customer_id as customer_id,
    usage.usage_date as usage_date,
    sumIf(usage.quantity, usage.metric_type = 'impressions') as impressions,
    sumIf(usage.quantity, usage.metric_type = 'api_calls') as api_calls,
    sumIf(usage.quantity, usage.metric_type = 'data_transfer') as data_transfer_bytes,
    sumIf(usage.quantity, usage.metric_type = 'mediated_revenue') as mediated_revenue_micros,
    sumIf(usage.quantity, usage.metric_type = 'sdk_errors') as sdk_errors,
    sumIf(usage.quantity, usage.metric_type = 'sdk_crashes') as sdk_crashes,
    sumIf(usage.quantity, usage.metric_type = 'console_logins') as console_logins,
    sumIf(usage.quantity, usage.metric_type = 'doc_views') as doc_views,
    sumIf(usage.quantity, usage.metric_type = 'support_tickets') as support_tickets,
    groupUniqArrayArrayIf(usage.dimension_values, usage.metric_type = 'feature_used') as features,
    toUInt8(max(metric.kind = 'usage')) as has_telemetry,
    toUInt8(max(metric.kind = 'usage' and usage.quantity > 0)) as is_active,
    minIf(usage.first_event_at, metric.kind = 'usage') as first_telemetry_at,
    minIf(usage.first_event_at, usage.metric_type = 'impressions' and usage.quantity > 0) as first_impression_at
from {{ ref('usage_daily') }} as usage
left join {{ ref('metric_catalogue') }} as metric
    on usage.metric_type = metric.metric_type
group by usage.customer_id, usage.usage_date
