{#
    Rate of the platform fee in basis points: that of the band in which the month's revenue falls, bounds included;
    in the last band the contract's, where there is one.

    `revenue` is in storage units, of which `units_per_cent` make a cent.
#}
{% macro platform_fee_basis_points(revenue, units_per_cent, contract_basis_points) -%}
    arrayMap(
        band -> if(band.1 is null, coalesce({{ contract_basis_points }}, band.2), band.2),
        [arrayFirst(
            band -> coalesce({{ revenue }} <= band.1 * toInt256({{ units_per_cent }}), true),
            assumeNotNull((
                select arrayMap(each -> each.2, arraySort(groupArray((band, (up_to_revenue_cents, fee_basis_points)))))
                from {{ ref('platform_fee_bands') }}
            ))
        )]
    )[1]
{%- endmacro %}

{# The fee in cents, rounded half to even: nothing of revenue that corrections took below zero, and no less than the minimum. #}
{% macro platform_fee_cents(revenue, units_per_cent, basis_points, minimum_cents) -%}
    greatest(
        {{ minimum_cents }},
        {{ divide_half_even(
            'toInt256(greatest(0, ' ~ revenue ~ ')) * ' ~ basis_points, '10000 * toInt256(' ~ units_per_cent ~ ')'
        ) }}
    )
{%- endmacro %}
