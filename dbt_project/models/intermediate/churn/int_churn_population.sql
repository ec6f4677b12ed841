{{ config(order_by=['customer_id', 'feature_date']) }}

{%- set step = var('churn_feature_step_days') | int -%}
{%- set label = var('churn_label') -%}
{%- if label not in ('subscription_end', 'inactivity') -%}
    {{ exceptions.raise_compiler_error("churn_label is " ~ label ~ "; it must be subscription_end or inactivity") }}
{%- endif %}

-- Either label keeps both parents, so that the graph does not change with a variable.
-- depends_on: {{ ref('stg_customers') }}
-- depends_on: {{ ref('stg_subscriptions') }}
with first_use as (

    select customer_id, min(usage_date) as first_used_on
    from {{ ref('int_customer_days') }}
    group by customer_id

),

feature_dates as (

    -- as_of_date, and every step back from it to 30 days after the first use of anybody.
    select {{ as_of_date() }} - back * {{ step }} as feature_date
    from (
        select
            arrayJoin(range(toUInt64(
                1 + greatest(
                    0,
                    if(count() = 0, 0, intDiv(dateDiff('day', min(first_used_on), {{ as_of_date() }}) - 30, {{ step }}))
                )
            ))) as back
        from first_use
    )

),

{% if label == 'subscription_end' %}
customers as (

    -- Open at the feature date by its own times; the status of today would tell the future.
    select
        customer_id,
        toDate(started_at, 'UTC') as from_date,
        -- Its last day that began while it was open.
        coalesce(toDate(cancelled_at, 'UTC'), toDate('2149-06-06')) as last_open_date
    from {{ ref('stg_subscriptions') }}

)
{% else %}
customers as (

    select
        customer.customer_id as customer_id,
        if(
            first_use.customer_id = '',
            toDate(customer.created_at, 'UTC'),
            least(toDate(customer.created_at, 'UTC'), first_use.first_used_on)
        ) as from_date,
        toDate('2149-06-06') as last_open_date
    from {{ ref('stg_customers') }} as customer
    left join first_use
        on customer.customer_id = first_use.customer_id

)
{% endif %}

select
    customers.customer_id as customer_id,
    feature_dates.feature_date as feature_date,
    max(customers.from_date) as active_since
from customers
cross join feature_dates
where customers.from_date < feature_dates.feature_date and customers.last_open_date >= feature_dates.feature_date
group by customers.customer_id, feature_dates.feature_date
