{{ config(order_by=['feature_date', 'customer_id']) }}

{%- set horizon = var('churn_horizon_days') | int %}

-- Either label keeps both parents, so that the graph does not change with a variable.
-- depends_on: {{ ref('usage_daily') }}
-- depends_on: {{ ref('stg_subscriptions') }}
with judged as (

    select
        customer_id,
        feature_date
    from {{ ref('int_churn_population') }}
    where feature_date + {{ horizon }} <= {{ as_of_date() }}

),

horizons as (

    select arraySort(groupUniqArray(feature_date)) as dates
    from judged

),

{% if var('churn_label') == 'subscription_end' %}
outcomes as (

    select distinct
        customer_id,
        arrayJoin(arrayFilter(
            feature_date -> toDate(ended_at, 'UTC') between feature_date and feature_date + {{ horizon }} - 1,
            assumeNotNull((select dates from horizons))
        )) as feature_date
    from (
        select customer_id, assumeNotNull(cancelled_at) as ended_at
        from {{ ref('stg_subscriptions') }}
        where cancelled_at is not null
    )

)
{% else %}
outcomes as (

    select distinct
        customer_id,
        arrayJoin(arrayFilter(
            feature_date -> feature_date <= usage_date and usage_date < feature_date + {{ horizon }},
            assumeNotNull((select dates from horizons))
        )) as feature_date
    from {{ ref('usage_daily') }}
    where metric_type = 'impressions' and quantity > 0

)
{% endif %}

select
    judged.customer_id as customer_id,
    judged.feature_date as feature_date,
    {% if var('churn_label') == 'subscription_end' -%}
    toUInt8(outcomes.customer_id != '') as churned,
    {% else -%}
    toUInt8(outcomes.customer_id = '') as churned,
    {% endif -%}
    judged.feature_date + {{ horizon }} as label_known_on
from judged
left join outcomes
    on judged.customer_id = outcomes.customer_id and judged.feature_date = outcomes.feature_date
