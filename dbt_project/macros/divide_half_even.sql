{#
    `numerator` / `denominator` as an Int64, rounded half to even, exactly: both are whole numbers and the
    denominator is positive. Money is rounded by this and by nothing else.
#}
{% macro divide_half_even(numerator, denominator) -%}
    {%- set n = 'toInt256(' ~ numerator ~ ')' -%}
    {%- set d = 'toInt256(' ~ denominator ~ ')' -%}
    arrayMap(
        (n, d, q) -> toInt64(q + (2 * (n - q * d) > d or (2 * (n - q * d) = d and q % 2 != 0))),
        [{{ n }}],
        [{{ d }}],
        -- Rounded down, below zero too.
        [intDiv({{ n }}, {{ d }}) - ({{ n }} < 0 and {{ n }} % {{ d }} != 0)]
    )[1]
{%- endmacro %}
