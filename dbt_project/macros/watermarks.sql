{#
    How far an incremental model has come, kept so that a kill at any point costs a repeat and never a row.

    intermediate.model_watermarks is append-only. A model writes `begun` before its statement, with how far
    its input reaches, and `stored` after the statement, repeating that value. Only `stored` is believed by
    the next run. So a run that died in between leaves its mark behind unbelieved, and the mark can't run
    ahead of the rows. The newest entry counts, not the greatest: a full refresh may set a mark back.
#}
{% macro model_watermarks() -%}
    intermediate.model_watermarks
{%- endmacro %}

{% macro on_cluster() -%}
    {%- set cluster = adapter.get_clickhouse_cluster_name() if execute else none -%}
    {{ 'on cluster ' ~ cluster if cluster is not none else '' }}
{%- endmacro %}

{% macro create_model_watermarks() %}
    {% if execute %}
        {% do run_query('create database if not exists intermediate ' ~ on_cluster()) %}
        {% call statement('create_model_watermarks') %}
            create table if not exists {{ model_watermarks() }} {{ on_cluster() }}
            (
                model        LowCardinality(String)     comment 'model, or model.column when it keeps several marks',
                state        Enum8('begun' = 1, 'stored' = 2),
                watermark    DateTime64(6, 'UTC')       comment 'how far the input of the model reaches',
                rows_before  UInt64 default 0           comment 'rows of the input in the hour up to there',
                recorded_at  DateTime64(6, 'UTC') default now64(6, 'UTC')
            )
            engine = {{ 'ReplicatedMergeTree' if adapter.get_clickhouse_cluster_name() is not none else 'MergeTree' }}
            order by (model, state, recorded_at)
            settings fsync_after_insert = 1, fsync_part_directory = 1
        {% endcall %}
    {% endif %}
{% endmacro %}

{#
    When a mark is recorded: later than all others even if the server's clock was set back, since the newest
    counts.
#}
{% macro recording_time() -%}
    greatest(
        now64(6, 'UTC'),
        assumeNotNull((select max(recorded_at) from {{ model_watermarks() }})) + toIntervalMicrosecond(1)
    )
{%- endmacro %}

{# The newest mark of `model` in `state`, as a DateTime64(6, 'UTC') scalar; 1970 when there is none. #}
{% macro watermark(model, state, column='watermark') -%}
    assumeNotNull((
        select argMax({{ column }}, recorded_at) from {{ model_watermarks() }}
        where model = '{{ model }}' and state = '{{ state }}'
    ))
{%- endmacro %}

{% macro stored_watermark(model) -%}
    {{ watermark(model, 'stored') }}
{%- endmacro %}

{% macro begun_watermark(model) -%}
    {{ watermark(model, 'begun') }}
{%- endmacro %}

{# The stored mark before the newest one: what lies above it came with the newest run that brought anything. #}
{% macro previous_watermark(model) -%}
    assumeNotNull((
        select max(watermark) from {{ model_watermarks() }}
        where model = '{{ model }}' and state = 'stored' and watermark < {{ stored_watermark(model) }}
    ))
{%- endmacro %}

{#
    Hooks of int_usage_events. Two marks: loaded_at says how far the landing log was read, processed_at which
    of the rows in the model belong to a run that finished.
#}
{% macro begin_usage_events() -%}
    insert into {{ model_watermarks() }} (model, state, watermark, rows_before, recorded_at)
    select
        'int_usage_events',
        'begun',
        assumeNotNull((select max(loaded_at) from {{ ref('stg_usage_events') }})) as newest,
        assumeNotNull((
            select count() from {{ ref('stg_usage_events') }}
            where loaded_at > newest - interval 1 hour and loaded_at <= newest
        )),
        {{ recording_time() }}
    settings enable_shared_storage_snapshot_in_query = 1
{%- endmacro %}

{% macro finish_usage_events() -%}
    {%- set finished = stored_watermark('int_usage_events.processed_at') -%}
    insert into {{ model_watermarks() }} (model, state, watermark, rows_before, recorded_at)
    select mark.1, 'stored', mark.2, mark.3, {{ recording_time() }}
    from (
        select arrayJoin([
            (
                'int_usage_events',
                {{ begun_watermark('int_usage_events') }},
                {{ watermark('int_usage_events', 'begun', 'rows_before') }}
            ),
            (
                'int_usage_events.processed_at',
                greatest(
                    {{ finished }},
                    assumeNotNull((select max(processed_at) from {{ this }} where processed_at > {{ finished }}))
                ),
                toUInt64(0)
            )
        ]) as mark
    )
{%- endmacro %}

{#
    The time of loading up to which int_usage_events has read the landing log for good.

    Rows become visible a little after the time that they carry, so some may turn up behind the mark. The hour
    before it is counted when it is first read and again now: when the counts differ that hour is read once
    more, and otherwise nothing is read twice, however much was loaded in it.
#}
{% macro usage_events_read_until() -%}
    {%- set mark = stored_watermark('int_usage_events') -%}
    if(
        {{ watermark('int_usage_events', 'stored', 'rows_before') }} = assumeNotNull((
            select count() from {{ ref('stg_usage_events') }}
            where loaded_at > {{ mark }} - interval 1 hour and loaded_at <= {{ mark }}
        )),
        {{ mark }},
        {{ mark }} - interval 1 hour
    )
{%- endmacro %}

{#
    Hooks of an incremental model that reads another one: it takes in what runs of `source` that finished have
    stored, and nothing of one that is under way. `source` is the name of a mark.
#}
{% macro begin_reading(model, source) -%}
    insert into {{ model_watermarks() }} (model, state, watermark, recorded_at)
    select '{{ model }}', 'begun', {{ stored_watermark(source) }}, {{ recording_time() }}
{%- endmacro %}

{% macro finish_reading(model) -%}
    insert into {{ model_watermarks() }} (model, state, watermark, recorded_at)
    select '{{ model }}', 'stored', {{ begun_watermark(model) }}, {{ recording_time() }}
{%- endmacro %}

{# When the run of `model` that is under way began: later than the same of any run before. #}
{% macro began_reading_at(model) -%}
    assumeNotNull((
        select max(recorded_at) from {{ model_watermarks() }} where model = '{{ model }}' and state = 'begun'
    ))
{%- endmacro %}
