{%- set today = as_of_date() -%}
{%- set last_7 = 'usage_date >= ' ~ today ~ ' - 7 and usage_date < ' ~ today -%}
{%- set previous_7 = 'usage_date >= ' ~ today ~ ' - 14 and usage_date < ' ~ today ~ ' - 7' -%}
{%- set last_30 = 'usage_date >= ' ~ today ~ ' - 30 and usage_date < ' ~ today -%}
{%- set previous_30 = 'usage_date >= ' ~ today ~ ' - 60 and usage_date < ' ~ today ~ ' - 30' -%}
{%- set third_30 = 'usage_date >= ' ~ today ~ ' - 90 and usage_date < ' ~ today ~ ' - 60' -%}

with usage_by_customer as (

    select
        customer_id,
        sumIf(impressions, {{ last_7 }}) as impressions_7d,
        sumIf(impressions, {{ previous_7 }}) as impressions_previous_7d,
        sumIf(impressions, {{ last_30 }}) as impressions_30d,
        sumIf(impressions, {{ previous_30 }}) as impressions_previous_30d,
        sumIf(impressions, {{ third_30 }}) as impressions_third_30d,
        sumIf(api_calls, {{ last_30 }}) as api_calls_30d,
        sumIf(api_calls, {{ previous_30 }}) as api_calls_previous_30d,
        sumIf(data_transfer_bytes, {{ last_30 }}) as data_transfer_bytes_30d,
        sumIf(mediated_revenue_micros, {{ last_30 }}) as mediated_revenue_micros_30d,
        sumIf(support_tickets, {{ last_30 }}) as support_tickets_30d,
        sumIf(doc_views, {{ last_30 }}) as doc_views_30d,
        sumIf(console_logins, {{ last_30 }}) as console_logins_30d,
        uniqExactArrayIf(features, {{ last_30 }}) as features_30d,
        countIf(is_active and {{ last_30 }}) as active_days_30d,
        countIf(has_telemetry and usage_date <= {{ today }}) as days_with_telemetry,
        countIf(is_active and usage_date < {{ today }}) as active_days,
        maxIf(usage_date, is_active and usage_date < {{ today }}) as last_active_on,
        minIf(usage_date, usage_date <= {{ today }}) as first_used_on
    from {{ ref('int_customer_days') }}
    where usage_date <= {{ today }}
    group by customer_id

)

select
    customer.customer_id as customer_id,
    {{ today }} as as_of_date,
    toDate(customer.created_at, 'UTC') as signed_up_on,
    -- The account of an imported customer is younger than its use.
    if(usage.customer_id = '', signed_up_on, least(signed_up_on, usage.first_used_on)) as known_since,
    usage.impressions_7d as impressions_7d,
    usage.impressions_previous_7d as impressions_previous_7d,
    usage.impressions_30d as impressions_30d,
    usage.impressions_previous_30d as impressions_previous_30d,
    usage.impressions_third_30d as impressions_third_30d,
    usage.api_calls_30d as api_calls_30d,
    usage.api_calls_previous_30d as api_calls_previous_30d,
    usage.data_transfer_bytes_30d as data_transfer_bytes_30d,
    usage.mediated_revenue_micros_30d as mediated_revenue_micros_30d,
    usage.support_tickets_30d as support_tickets_30d,
    usage.doc_views_30d as doc_views_30d,
    usage.console_logins_30d as console_logins_30d,
    usage.features_30d as features_30d,
    usage.active_days_30d as active_days_30d,
    usage.days_with_telemetry as days_with_telemetry,
    if(usage.active_days > 0, usage.last_active_on, null) as last_active_on
from {{ ref('stg_customers') }} as customer
left join usage_by_customer as usage
    on customer.customer_id = usage.customer_id
where toDate(customer.created_at, 'UTC') <= {{ today }}
