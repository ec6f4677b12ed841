{#
    What a killed dbt leaves on the server.

    Its statement goes on without it. Were it still inserting while the next run looks at what is stored, the
    same rows would come twice; so an incremental model first ends whatever an earlier run of itself left
    running. dbt puts the node's name into a comment of each statement.
#}
{% macro end_leftover_statements() -%}
    kill query {{ on_cluster() }}
    where query_kind in ('Insert', 'Delete')
        and position(query, '"node_id": "{{ model.unique_id }}"') > 0
    sync
{%- endmacro %}

{# Tables of replacement rows that were never dropped. Young ones may belong to a run that is alive. #}
{% macro drop_leftover_tables() %}
    {% if execute %}
        {% set leftovers = run_query(
            "select database, name from system.tables"
            " where name like '%\\\\_\\\\_dbt\\\\_new\\\\_data\\\\_%'"
            " and metadata_modification_time < now() - interval 1 hour"
        ) %}
        {% for leftover in leftovers.rows %}
            {% do run_query('drop table if exists ' ~ leftover[0] ~ '.`' ~ leftover[1] ~ '` ' ~ on_cluster() ~ ' sync') %}
        {% endfor %}
    {% endif %}
{% endmacro %}
