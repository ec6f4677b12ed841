{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['as_of_date'],
        on_schema_change='append_new_columns',
        full_refresh=false,
        order_by=['as_of_date'],
        pre_hook='{{ end_leftover_statements() }}',
    )
}}

select
    {{ as_of_date() }} as as_of_date,
    count() as memberships
from {{ ref('int_segment_members') }}
