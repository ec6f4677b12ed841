{#
    Post-hook of usage_by_period. A period may vanish: a subscription that was cancelled before it began, a
    metric that the catalogue no longer bills, an earlier instant of the run. The strategy deletes only what
    has new rows.
#}
{% macro delete_former_periods() -%}
    delete from {{ this }}
    where
        (subscription_id, period_start) not in (
            select subscription_id, period_start from {{ ref('int_billing_periods') }}
        )
        or metric_type not in (select metric_type from {{ ref('metric_catalogue') }} where kind = 'usage')
{%- endmacro %}
