{#
    Post-hook of segment_membership_daily. A day run again with nobody in any segment has no new rows, and the
    strategy deletes only days that have some.
#}
{% macro delete_former_members() -%}
    delete from {{ this }}
    where as_of_date = {{ as_of_date() }}
        and (customer_id, segment) not in (select customer_id, segment from {{ ref('int_segment_members') }})
{%- endmacro %}
