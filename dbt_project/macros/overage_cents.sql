{#
    Price of use beyond what is included, minor units, rounded half to even: one invoice line. Overage costs
    `price_cents` for `price_quantity`, in proportion; a `price_quantity` of 0 means that it is free.
#}
{% macro overage_cents(overage_quantity, price_cents, price_quantity) -%}
    if(
        {{ price_quantity }} = 0,
        toInt64(0),
        {{ divide_half_even(
            'toInt256(' ~ overage_quantity ~ ') * ' ~ price_cents, 'greatest(1, ' ~ price_quantity ~ ')'
        ) }}
    )
{%- endmacro %}
