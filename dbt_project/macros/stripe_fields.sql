{#
    One field of a Stripe object; the arguments are the path to the field, in the column payload or another JSON
    column that is named by `of`.

    A field that is missing, null or of another type than the macro's is null, and never a default or an error:
    an amount that isn't there must not be counted as zero, and one odd object must not stop the others.
#}
{% macro stripe_path(path, options) -%}
    {{ options.get('of', 'payload') }}, {% for step in path %}'{{ step }}'{{ ', ' if not loop.last }}{% endfor %}
{%- endmacro %}

{% macro stripe_text() -%}
    {%- set path = stripe_path(varargs, kwargs) -%}
    if(JSONType({{ path }}) = 'String', JSONExtractString({{ path }}), null)
{%- endmacro %}

{# Int64; what does not fit is null. #}
{% macro stripe_integer() -%}
    {%- set path = stripe_path(varargs, kwargs) -%}
    if(JSONType({{ path }}) in ('Int64', 'UInt64'), JSONExtract({{ path }}, 'Nullable(Int64)'), null)
{%- endmacro %}

{# 1 or 0. #}
{% macro stripe_flag() -%}
    {%- set path = stripe_path(varargs, kwargs) -%}
    if(JSONType({{ path }}) = 'Bool', toUInt8(JSONExtractBool({{ path }})), null)
{%- endmacro %}

{# Unix seconds as DateTime64(6, 'UTC'). #}
{% macro stripe_time() -%}
    {%- set path = stripe_path(varargs, kwargs) -%}
    toDateTime64(
        if(JSONType({{ path }}) in ('Int64', 'UInt64'), JSONExtract({{ path }}, 'Nullable(UInt32)'), null), 6, 'UTC'
    )
{%- endmacro %}

{# Decimal(38, 12), as many places as Stripe has. Read from the text of the number, which no float has touched. #}
{% macro stripe_decimal() -%}
    toDecimal128OrNull(trim(both '"' from JSONExtractRaw({{ stripe_path(varargs, kwargs) }})), 12)
{%- endmacro %}

{# The id of an object that is either named by its id or, when it was asked to be expanded, there as a whole. #}
{% macro stripe_reference() -%}
    {%- set path = stripe_path(varargs, kwargs) -%}
    multiIf(
        JSONType({{ path }}) = 'String', JSONExtractString({{ path }}),
        JSONType({{ path }}, 'id') = 'String', JSONExtractString({{ path }}, 'id'),
        null
    )
{%- endmacro %}
