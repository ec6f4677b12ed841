{# Aggregates rows to a map from `key` to the sum of the whole numbers `value`, without the keys of which it is 0. #}
{% macro nonzero_map(key, value) -%}
    mapFilter((k, v) -> v != 0, mapSort(sumMap(map({{ key }}, toInt64({{ value }})))))
{%- endmacro %}
