{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['customer_id', 'usage_date', 'known_on', 'metric_type'],
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'usage_date', 'known_on', 'metric_type'],
        partition_by='toYear(usage_date)',
        contract={'enforced': true},
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        query_settings={'max_partitions_per_insert_block': 200},
        pre_hook=[
            '{{ end_leftover_statements() }}',
            "{{ begin_reading('int_usage_arrivals', 'int_usage_events.processed_at') }}",
        ],
        post_hook="{{ finish_reading('int_usage_arrivals') }}",
    )
}}

with finished_events as (

    select *
    from {{ ref('int_usage_events') }}
    where processed_at <= {{ begun_watermark('int_usage_arrivals') }}

),

{% if is_incremental() %}
touched as (

    select distinct customer_id, usage_date, known_on, metric_type
    from finished_events
    where processed_at > {{ stored_watermark('int_usage_arrivals') }}

),
{% endif %}

computed_events as (

    select *
    from finished_events
    {% if is_incremental() %}
    where
        -- By the sorting key of the events, then to the row.
        (customer_id, usage_date) in (select customer_id, usage_date from touched)
        and (customer_id, usage_date, known_on, metric_type) in (
            select customer_id, usage_date, known_on, metric_type from touched
        )
    {% endif %}

)

select
    customer_id,
    usage_date,
    known_on,
    metric_type,
    sum(event.quantity) as quantity,
    arraySort(groupUniqArrayIf(dimension, dimension != '')) as dimension_values,
    max(event.processed_at) as processed_at
from computed_events as event
group by customer_id, usage_date, known_on, metric_type
