{#
    The day that a run takes for today, as a Date. Models never ask the server for the time.

    Parsing works without the variable; anything that would run stops with an error that says what to pass.
#}
{% macro as_of_date() -%}
    {%- set value = var('as_of_date', none) -%}
    {%- if value is none and execute -%}
        {{ exceptions.raise_compiler_error(
            "the variable as_of_date is missing; pass today's date (UTC) by --vars '{as_of_date: YYYY-MM-DD}'"
        ) }}
    {%- endif -%}
    toDate('{{ value if value is not none else '1970-01-01' }}')
{%- endmacro %}

{#
    The instant at which a run takes place, as a DateTime64(6, 'UTC'): within as_of_date, its end when nobody
    said. Billing periods begin and end at instants; all else goes by whole days.

    From the environment: after a change of its variables dbt parses the whole project again.
#}
{% macro as_of_instant() -%}
    {%- set value = env_var('APEX_DBT_AS_OF_INSTANT', '') if execute else '' -%}
    {%- if value == '' -%}
        toDateTime64({{ as_of_date() }} + 1, 6, 'UTC')
    {%- else -%}
        toDateTime64('{{ value }}', 6, 'UTC')
    {%- endif -%}
{%- endmacro %}
