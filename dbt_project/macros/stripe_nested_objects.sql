{#
    Objects that Stripe sends both inside of a list of their parent and by themselves: object_id, parent_id,
    payload, fetched_at.

    A list is the truth about which objects there are at the time of its fetch, unless Stripe cut it short
    (has_more). So an object of its own counts when it was fetched later, or when no whole list is known; and of
    the two forms of one object the later one counts.
#}
{% macro stripe_nested_objects(object, parent, list) -%}
    with parents as (
        select
            object_id,
            payload,
            fetched_at,
            is_deleted,
            JSONExtract(payload, '{{ list }}', 'has_more', 'Nullable(Bool)') as is_cut
        from {{ ref('stg_stripe_objects') }}
        where object = '{{ parent }}'
    ),

    nested as (
        select
            object_id as parent_id,
            arrayJoin(JSONExtractArrayRaw(payload, '{{ list }}', 'data')) as payload,
            fetched_at
        from parents
        where not is_deleted
    ),

    by_themselves as (
        select
            object_id,
            coalesce({{ stripe_reference(parent) }}, '') as parent_id,
            payload,
            fetched_at,
            is_deleted
        from {{ ref('stg_stripe_objects') }}
        where object = '{{ object }}'
    ),

    candidates as (
        select
            JSONExtractString(payload, 'id') as object_id,
            parent_id,
            payload,
            fetched_at,
            0 as is_deleted
        from nested

        union all

        select
            by_themselves.object_id,
            by_themselves.parent_id,
            by_themselves.payload,
            by_themselves.fetched_at,
            by_themselves.is_deleted
        from by_themselves
        left join parents on by_themselves.parent_id = parents.object_id
        where
            by_themselves.is_deleted
            or parents.object_id = ''
            or (
                not parents.is_deleted
                and (coalesce(parents.is_cut, true) or by_themselves.fetched_at > parents.fetched_at)
            )
    ),

    newest as (
        select *
        from candidates
        order by fetched_at desc, is_deleted desc
        limit 1 by object_id
    )

    select object_id, parent_id, payload, fetched_at
    from newest
    where not is_deleted
{%- endmacro %}
