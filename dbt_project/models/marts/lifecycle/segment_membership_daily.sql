{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['as_of_date'],
        on_schema_change='append_new_columns',
        full_refresh=false,
        order_by=['as_of_date', 'segment', 'customer_id'],
        pre_hook='{{ end_leftover_statements() }}',
        post_hook="{{ delete_rows_gone_from('int_segment_members', ['customer_id', 'segment']) }}",
    )
}}

select customer_id, segment, as_of_date, reason
from {{ ref('int_segment_members') }}
