{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['as_of_date'],
        on_schema_change='append_new_columns',
        full_refresh=false,
        order_by=['as_of_date', 'customer_id'],
        pre_hook='{{ end_leftover_statements() }}',
        post_hook="{{ delete_rows_gone_from('customer_health', ['customer_id']) }}",
    )
}}

with points as (

    select
        customer_id,
        mapSort(mapFromArrays(groupArray(toString(component)), groupArray(points))) as points
    from {{ ref('int_health_components') }}
    group by customer_id

)

select
    health.customer_id as customer_id,
    health.as_of_date as as_of_date,
    health.score as score,
    health.band as band,
    points.points as points
from {{ ref('customer_health') }} as health
inner join points
    on health.customer_id = points.customer_id
