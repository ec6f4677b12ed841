{{ config(order_by=['customer_id', 'feature_date']) }}

{%- set step = var('churn_feature_step_days') | int -%}
{%- set label = var('churn_label') -%}
{%- if label not in ('subscription_end', 'inactivity') -%}
    {{ exceptions.raise_compiler_error("churn_label is " ~ label ~ "; it must be subscription_end or inactivity") }}
{%- endif %}

-- Either label keeps both parents, so that the graph does not change with a variable.
-- depends_on: {{ ref('stg_customers') }}
-- depends_on: {{ ref('stg_subscriptions') }}
with first_uses as (

    -- First use of a customer as it was known from a day on: a row for each time that late events moved it back.
    select customer_id, known_on, usage_date
    from (
        select
            *,
            lagInFrame(toNullable(earliest)) over (
                partition by customer_id order by known_on rows between unbounded preceding and current row
            ) as earliest_before
        from (
            select
                customer_id,
                known_on,
                min(first_date) over (
                    partition by customer_id order by known_on rows between unbounded preceding and current row
                ) as earliest,
                earliest as usage_date
            from (
                select customer_id, known_on, min(usage_date) as first_date
                from {{ ref('int_usage_arrivals') }}
                group by customer_id, known_on
            )
        )
    )
    where coalesce(earliest < earliest_before, true)

),

feature_dates as (

    -- as_of_date, and the days that are a multiple of the step after 1970-01-01: the same ones whenever it is
    -- computed. From 30 days after the first use of anybody, as far as it was known by then.
    select
        arrayJoin(arrayDistinct(arrayPushBack(
            arrayMap(
                number -> toDate({{ step }} * number),
                range(
                    toUInt64(intDiv(first_date + {{ step - 1 }}, {{ step }})),
                    toUInt64(1 + intDiv(toUInt32({{ as_of_date() }}), {{ step }}))
                )
            ),
            {{ as_of_date() }}
        ))) as feature_date
    from (
        select
            if(
                count() = 0,
                toUInt32({{ as_of_date() }}),
                toUInt32(min(greatest(usage_date + 30, known_on + 1)))
            ) as first_date
        from first_uses
    )

),

{% if label == 'subscription_end' %}
customers as (

    -- Open at the feature date by its own times; the status of today would tell the future.
    select
        subscription.customer_id as customer_id,
        feature_dates.feature_date as feature_date,
        toDate(subscription.started_at, 'UTC') as from_date
    from {{ ref('stg_subscriptions') }} as subscription
    cross join feature_dates
    where
        from_date < feature_date
        -- Its last day that began while it was open.
        and coalesce(toDate(subscription.cancelled_at, 'UTC') >= feature_date, true)

)
{% else %}
customers as (

    -- The account of an imported customer is younger than its use.
    select
        known.customer_id as customer_id,
        feature_dates.feature_date as feature_date,
        min(known.from_date) as from_date
    from (
        select customer_id, toDate(created_at, 'UTC') as from_date, from_date as known_on
        from {{ ref('stg_customers') }}

        union all

        select customer_id, usage_date as from_date, known_on
        from first_uses
        where customer_id in (select customer_id from {{ ref('stg_customers') }})
    ) as known
    cross join feature_dates
    where known.from_date < feature_date and known.known_on < feature_date
    group by customer_id, feature_date

)
{% endif %}

select
    customer_id,
    feature_date,
    max(from_date) as active_since
from customers
group by customer_id, feature_date
