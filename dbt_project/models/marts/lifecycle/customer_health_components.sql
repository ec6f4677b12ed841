{{ config(order_by=['customer_id', 'component']) }}

with earlier as (

    -- The newest day of the log that is a month back; there may be none on the very day.
    select
        customer_id,
        argMax(points, as_of_date) as points,
        max(as_of_date) as logged_on
    from {{ ref('customer_health_daily') }}
    where
        dateDiff('day', as_of_date, {{ as_of_date() }}) >= {{ threshold('health', 'change_days') }}
        and dateDiff('day', as_of_date, {{ as_of_date() }}) - {{ threshold('health', 'change_days') }}
        <= {{ threshold('health', 'change_max_days_older') }}
    group by customer_id

),

compared as (

    select
        component.*,
        earlier.points as all_points_before,
        earlier.logged_on as logged_on,
        mapContains(all_points_before, toString(component.component)) as is_comparable
    from {{ ref('int_health_components') }} as component
    left join earlier
        on component.customer_id = earlier.customer_id

)

select
    customer_id,
    as_of_date,
    component,
    area,
    value,
    max_points,
    points,
    round(max_points - points, 2) as points_lost,
    if(is_comparable, all_points_before[toString(component)], null) as points_before,
    -- Without + 0 no change may show as -0.
    if(is_comparable, round(points - all_points_before[toString(component)], 2) + 0, null) as points_change,
    if(is_comparable, logged_on, null) as compared_with
from compared
