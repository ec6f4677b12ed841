{#
    Post-hook of a log by as_of_date, made from `model`. A day run again for which that model has no rows any
    more brings no new ones, and the strategy deletes only days that have some.
#}
{% macro delete_rows_gone_from(model, columns) -%}
    delete from {{ this }}
    where as_of_date = {{ as_of_date() }}
        and ({{ columns | join(', ') }}) not in (select {{ columns | join(', ') }} from {{ ref(model) }})
{%- endmacro %}
