{#
    One number of the life-cycle rules, as a Float64 scalar, from the seed that Python reads as well.
    A parameter that the seed does not have makes the query fail rather than compare with zero.
#}
{% macro threshold(rule, parameter) -%}
    assumeNotNull((
        select toFloat64(any(value)) + throwIf(count() != 1, 'lifecycle_thresholds.csv must have {{ rule }},{{ parameter }} once')
        from {{ ref('lifecycle_thresholds') }}
        where rule = '{{ rule }}' and parameter = '{{ parameter }}'
    ))
{%- endmacro %}
