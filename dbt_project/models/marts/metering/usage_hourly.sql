{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['customer_id', 'usage_hour', 'metric_type'],
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'usage_hour', 'metric_type'],
        partition_by='toDate(usage_hour)',
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        pre_hook=[
            '{{ end_leftover_statements() }}',
            "{{ begin_reading('usage_hourly', 'int_usage_events.processed_at') }}",
        ],
        post_hook=['{{ drop_former_hours() }}', "{{ finish_reading('usage_hourly') }}"],
    )
}}

with recent_events as (

    select
        customer_id,
        usage_date,
        toDateTime(toStartOfHour(event_time), 'UTC') as usage_hour,
        metric_type,
        quantity,
        processed_at
    from {{ ref('int_usage_events') }}
    where
        usage_date >= {{ first_hourly_day() }}
        and processed_at <= {{ begun_watermark('usage_hourly') }}

),

{% if is_incremental() %}
touched_hours as (

    select distinct customer_id, usage_date, usage_hour, metric_type
    from recent_events
    where processed_at > {{ stored_watermark('usage_hourly') }}

),
{% endif %}

computed_events as (

    select *
    from recent_events
    {% if is_incremental() %}
    where
        -- By the sorting key of the events, then to the hour.
        (customer_id, usage_date) in (select customer_id, usage_date from touched_hours)
        and (customer_id, usage_hour, metric_type) in (select customer_id, usage_hour, metric_type from touched_hours)
    {% endif %}

)

select
    customer_id,
    usage_hour,
    metric_type,
    sum(event.quantity) as quantity,
    count() as event_count
from computed_events as event
group by customer_id, usage_hour, metric_type
