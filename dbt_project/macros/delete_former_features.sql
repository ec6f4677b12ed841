{#
    Post-hook of churn_features. Rows that a build from nothing would not have: of a day that was as_of_date and is
    none of the regular feature dates, or of somebody who is no longer asked about at a date.
#}
{% macro delete_former_features() -%}
    delete from {{ this }}
    where (customer_id, feature_date) not in (
        select customer_id, feature_date from {{ ref('int_churn_population') }}
    )
{%- endmacro %}
