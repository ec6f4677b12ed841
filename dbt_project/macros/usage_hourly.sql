{# First of the days that usage_hourly keeps: as_of_date is the last of them. #}
{% macro first_hourly_day() -%}
    {{ as_of_date() }} - {{ var('usage_hourly_days') | int - 1 }}
{%- endmacro %}

{# Post-hook of usage_hourly: each day is a partition, so that what is too old costs nothing to drop. #}
{% macro drop_former_hours() -%}
    {% if execute %}
        {% set partitions = run_query(
            "select distinct partition_id from system.parts where active"
            " and database = '" ~ this.schema ~ "' and table = '" ~ this.identifier ~ "'"
            " and max_time < toDateTime(" ~ first_hourly_day() ~ ", 'UTC')"
        ) %}
        {% for partition in partitions.rows %}
            {% do run_query(
                'alter table ' ~ this ~ ' ' ~ on_cluster() ~ " drop partition id '" ~ partition[0] ~ "'"
            ) %}
        {% endfor %}
    {% endif %}
{%- endmacro %}
