{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['customer_id', 'usage_date', 'metric_type'],
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'usage_date', 'metric_type'],
        partition_by='toYear(usage_date)',
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        query_settings={'max_partitions_per_insert_block': 200},
        pre_hook=[
            '{{ end_leftover_statements() }}',
            "{{ begin_reading('usage_daily', 'int_usage_events.processed_at') }}",
        ],
        post_hook="{{ finish_reading('usage_daily') }}",
    )
}}

with finished_events as (

    select *
    from {{ ref('int_usage_events') }}
    where processed_at <= {{ begun_watermark('usage_daily') }}

)

select
    customer_id,
    usage_date,
    metric_type,
    sum(event.quantity) as quantity,
    count() as event_count,
    countIf(event.quantity < 0) as correction_count,
    min(event_time) as first_event_at,
    max(event_time) as last_event_at,
    arraySort(groupUniqArrayIf(dimension, dimension != '')) as dimension_values,
    max(event.processed_at) as processed_at
from finished_events as event
{% if is_incremental() %}
-- The days that an event of an unseen run belongs to, each recomputed whole.
where (customer_id, usage_date, metric_type) in (
    select customer_id, usage_date, metric_type
    from finished_events
    where processed_at > {{ stored_watermark('usage_daily') }}
)
{% endif %}
group by customer_id, usage_date, metric_type
