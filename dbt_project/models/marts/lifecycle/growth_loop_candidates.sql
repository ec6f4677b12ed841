{{ config(order_by=['customer_id', 'growth_loop']) }}

with customers as (

    -- Those who are in good standing: nobody asks a favour of who left or was suspended.
    select usage.customer_id as customer_id, usage.* except (customer_id)
    from {{ ref('int_customer_usage') }} as usage
    inner join {{ ref('int_current_subscriptions') }} as subscription
        on usage.customer_id = subscription.customer_id
    where subscription.is_open and subscription.status != 'suspended'

)

select
    customers.customer_id as customer_id,
    customers.as_of_date as as_of_date,
    toLowCardinality('invite_team') as growth_loop,
    concat(toString(impressions_30d), ' impressions in the last 30 days, no team-mate invited') as detail
from customers
left join {{ ref('int_customer_life') }} as life
    on customers.customer_id = life.customer_id
where
    impressions_30d > {{ threshold('growth_loop', 'invite_team_min_impressions_30d') }}
    and life.teammates_invited <= 0

union all

select
    customer_id,
    as_of_date,
    toLowCardinality('case_study') as growth_loop,
    concat(
        toString(impressions_30d), ' impressions in the last 30 days, ',
        toString(impressions_previous_30d), ' in the 30 before'
    ) as detail
from customers
where
    -- Who came in the midst of the earlier window grows by its empty days alone.
    known_since <= as_of_date - 60
    and impressions_previous_30d >= {{ threshold('growth_loop', 'case_study_min_previous_impressions_30d') }}
    and impressions_30d > {{ threshold('growth_loop', 'case_study_growth_ratio') }} * impressions_previous_30d

union all

select
    customers.customer_id as customer_id,
    customers.as_of_date as as_of_date,
    toLowCardinality('referral') as growth_loop,
    concat(
        'answered ', toString(assumeNotNull(life.nps_score)), ' of 10 on ',
        toString(toDate(assumeNotNull(life.nps_answered_at), 'UTC'))
    ) as detail
from customers
inner join {{ ref('int_customer_life') }} as life
    on customers.customer_id = life.customer_id
where life.nps_score > {{ threshold('growth_loop', 'champion_nps_above') }}
