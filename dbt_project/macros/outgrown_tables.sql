{#
    Drops the tables of incremental models of this run whose columns are no longer those of the contract, so that
    they are built from nothing. The adapter would either keep rows that lack the new column or, where a model only
    appends or reads itself, never add it. A log (`full_refresh=false`) can't be built again: it keeps its rows.
#}
{% macro drop_outgrown_tables() %}
    {% if execute and flags.WHICH in ('build', 'run') %}
        {% for id in selected_resources if id in graph.nodes %}
            {% set node = graph.nodes[id] %}
            {% if
                node.resource_type == 'model'
                and node.config.materialized == 'incremental'
                and node.config.contract.enforced
                and node.config.full_refresh is not false
            %}
                {% set relation = adapter.get_relation(none, node.schema, node.alias) %}
                {% if relation is not none and relation.type == 'table' %}
                    {% set stored = adapter.get_columns_in_relation(relation) | map(attribute='name') | list %}
                    {% if stored | sort != node.columns.keys() | sort %}
                        {{ log(relation ~ ' has other columns than its model; it is built from nothing', info=true) }}
                        {% do adapter.drop_relation(relation) %}
                    {% endif %}
                {% endif %}
            {% endif %}
        {% endfor %}
    {% endif %}
{% endmacro %}
