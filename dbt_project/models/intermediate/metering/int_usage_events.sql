{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        order_by=['customer_id', 'usage_date', 'event_id'],
        primary_key='(customer_id, usage_date)',
        partition_by='toYear(usage_date)',
        indexes=[{'name': 'processed_at_minmax', 'definition': 'processed_at type minmax granularity 1'}],
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        query_settings={'enable_shared_storage_snapshot_in_query': 1, 'max_partitions_per_insert_block': 200},
        contract={'enforced': true},
        meta={
            'dagster': {'group': 'metering', 'owners': ['team:analytics']},
            'append_because': 'a stored pair of customer and event is never replaced: the first accepted wins',
        },
        pre_hook=[
            '{{ end_leftover_statements() }}',
            '{{ begin_usage_events() }}',
        ],
        post_hook='{{ finish_usage_events() }}',
    )
}}

with arrivals as (

    select
        *,
        sipHash64(customer_id, event_id) as event_key
    from {{ ref('stg_usage_events') }}
    {% if is_incremental() %}
    where loaded_at > {{ usage_events_read_until() }}
    {% endif %}

),

{% if is_incremental() %}
already_stored as (

    -- One number a row is read of what is stored, and the ids only where it matches. Memory grows with the
    -- arrivals, by some 30 bytes each, and not with what is stored.
    select customer_id, event_id
    from {{ this }}
    where event_key in (select event_key from arrivals)

),
{% endif %}

candidates as (

    select *
    from arrivals
    {% if is_incremental() %}
    where (customer_id, event_id) not in (select customer_id, event_id from already_stored)
    {% endif %}

),

repeated_keys as (

    select event_key
    from arrivals
    group by event_key
    having count() > 1

),

new_events as (

    -- Nearly all arrive once and stream through; only the others are grouped. Two pairs that share a key by
    -- chance are grouped needlessly and kept apart.
    select *
    from candidates
    where event_key not in (select event_key from repeated_keys)

    union all

    select
        customer_id,
        event_id,
        event.1 as metric_type,
        event.2 as quantity,
        event.3 as event_time,
        event.4 as accepted_at,
        event.5 as metadata,
        event.6 as corrects_event_id,
        event.7 as correction_reason,
        event.8 as batch_id,
        event.9 as batch_row,
        event.10 as loaded_at,
        event_key
    from (
        select
            customer_id,
            event_id,
            event_key,
            argMin(
                (
                    metric_type, quantity, event_time, accepted_at, metadata,
                    corrects_event_id, correction_reason, batch_id, batch_row, loaded_at
                ),
                (loaded_at, batch_id, batch_row)
            ) as event
        from candidates
        where event_key in (select event_key from repeated_keys)
        group by customer_id, event_id, event_key
    )

)

select
    new_events.customer_id as customer_id,
    new_events.event_id as event_id,
    toLowCardinality(toString(new_events.metric_type)) as metric_type,
    new_events.quantity as quantity,
    new_events.event_time as event_time,
    new_events.accepted_at as accepted_at,
    new_events.metadata as metadata,
    if(
        metric.metadata_key = '',
        '',
        JSONExtractString(new_events.metadata, metric.metadata_key)
    ) as dimension,
    new_events.corrects_event_id as corrects_event_id,
    new_events.correction_reason as correction_reason,
    toLowCardinality(toString(new_events.batch_id)) as batch_id,
    new_events.batch_row as batch_row,
    new_events.loaded_at as loaded_at,
    new_events.event_key as event_key,
    toDate(new_events.event_time, 'UTC') as usage_date,
    -- Later than any finished run's, even if the server's clock was set back.
    greatest(
        now64(6, 'UTC'),
        {{ stored_watermark('int_usage_events.processed_at') }} + toIntervalMicrosecond(1)
    ) as processed_at
from new_events
left join {{ ref('metric_catalogue') }} as metric
    on new_events.metric_type = metric.metric_type
