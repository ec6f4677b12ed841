{#
    The adapter has no option for a projection's granularity; the query closes its parenthesis and goes on.
#}
{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='append_new_columns',
        order_by=['customer_id', 'usage_date', 'event_id'],
        primary_key='(customer_id, usage_date)',
        partition_by='toYear(usage_date)',
        indexes=[{'name': 'processed_at_minmax', 'definition': 'processed_at type minmax granularity 1'}],
        projections=[{
            'name': 'by_event_key',
            'query': 'select event_key, customer_id, usage_date order by event_key)'
                ' with settings (index_granularity = 128',
        }],
        settings={
            'fsync_after_insert': 1,
            'fsync_part_directory': 1,
            'index_granularity': 512,
            'min_compress_block_size': 4096,
            'lightweight_mutation_projection_mode': 'rebuild',
        },
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
stored_keys as (

    -- Answered by the projection, of which only the marks that may hold one of the keys are read.
    select customer_id, usage_date
    from {{ this }}
    where event_key in (select event_key from arrivals)

),

already_stored as (

    -- The ids themselves, read where the keys say that they are. Memory grows with the arrivals, by some 30 bytes
    -- each, and not with what is stored.
    select customer_id, event_id
    from {{ this }}
    where
        (customer_id, usage_date) in (select customer_id, usage_date from stored_keys)
        and event_key in (select event_key from arrivals)

),
{% endif %}

repeated_keys as (

    select event_key
    from arrivals
    group by event_key
    having count() > 1

),

first_arrivals as (

    -- Nearly all arrive once and stream through; only the others are grouped. Two pairs that share a key by
    -- chance are grouped needlessly and kept apart.
    select *
    from arrivals
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
        event.8 as historical,
        event.9 as batch_id,
        event.10 as batch_row,
        event.11 as loaded_at,
        event_key
    from (
        select
            customer_id,
            event_id,
            event_key,
            argMin(
                (
                    metric_type, quantity, event_time, accepted_at, metadata,
                    corrects_event_id, correction_reason, historical, batch_id, batch_row, loaded_at
                ),
                -- What was loaded together may come from several workers, whose names say nothing of time.
                (loaded_at, accepted_at, batch_id, batch_row)
            ) as event
        from arrivals
        where event_key in (select event_key from repeated_keys)
        group by customer_id, event_id, event_key
    )

)

select
    first_arrivals.customer_id as customer_id,
    first_arrivals.event_id as event_id,
    toLowCardinality(toString(first_arrivals.metric_type)) as metric_type,
    first_arrivals.quantity as quantity,
    first_arrivals.event_time as event_time,
    first_arrivals.accepted_at as accepted_at,
    first_arrivals.metadata as metadata,
    if(
        metric.metadata_key = '',
        '',
        JSONExtractString(first_arrivals.metadata, metric.metadata_key)
    ) as dimension,
    first_arrivals.corrects_event_id as corrects_event_id,
    first_arrivals.correction_reason as correction_reason,
    toLowCardinality(toString(first_arrivals.batch_id)) as batch_id,
    first_arrivals.batch_row as batch_row,
    first_arrivals.loaded_at as loaded_at,
    first_arrivals.event_key as event_key,
    toDate(first_arrivals.event_time, 'UTC') as usage_date,
    -- Later than any finished run's, even if the server's clock was set back.
    greatest(
        now64(6, 'UTC'),
        {{ stored_watermark('int_usage_events.processed_at') }} + toIntervalMicrosecond(1)
    ) as processed_at,
    if(first_arrivals.historical = 1, usage_date, toDate(first_arrivals.accepted_at, 'UTC')) as known_on
from first_arrivals
left join {{ ref('metric_catalogue') }} as metric
    on first_arrivals.metric_type = metric.metric_type
{% if is_incremental() %}
-- Here and not before the grouping, so that what is stored is searched once.
where (first_arrivals.customer_id, first_arrivals.event_id) not in (
    select customer_id, event_id from already_stored
)
{% endif %}
