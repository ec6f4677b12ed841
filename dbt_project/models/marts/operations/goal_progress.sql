{{ config(order_by=['goal', 'months']) }}

{%- set launch_date = var('launch_date', none) %}

with launch as (

    {% if launch_date is none -%}
    select
        minIf(digest_date, sign_ups > 0) as launch_day,
        countIf(sign_ups > 0) > 0 as has_launched
    from {{ ref('daily_digest') }}
    {%- else -%}
    select
        toDate('{{ launch_date }}') as launch_day,
        launch_day <= {{ as_of_date() }} as has_launched
    {%- endif %}

),

goals as (

    select
        goal.*,
        launch.has_launched as has_launched,
        launch.launch_day as launch_day,
        addMonths(launch.launch_day, goal.months) as deadline
    from {{ ref('goals') }} as goal
    cross join launch

),

counted as (

    -- From the launch to the day before the goal is due, or to as_of_date when that is earlier.
    select
        goals.goal as goal,
        goals.months as months,
        sum(day.sign_ups) as sign_ups,
        sum(day.integrations) as integrations,
        argMax(day.paying_customers, day.digest_date) as paying_customers,
        argMax(day.mrr_cents['usd'], day.digest_date) as mrr_usd_cents,
        sum(day.sdk_errors) as sdk_errors,
        sum(day.api_calls) as api_calls
    from goals
    cross join {{ ref('daily_digest') }} as day
    where goals.has_launched and day.digest_date >= goals.launch_day and day.digest_date < goals.deadline
    group by goals.goal, goals.months

),

actuals as (

    -- Of a goal that is not named here nothing in the warehouse tells; uptime is one.
    select
        goals.*,
        multiIf(
            counted.goal = '', null,
            goals.goal = 'sign_ups', toDecimal128(counted.sign_ups, 9),
            goals.goal = 'integrations', toDecimal128(counted.integrations, 9),
            goals.goal = 'paying_customers', toDecimal128(counted.paying_customers, 9),
            goals.goal = 'mrr', toDecimal128(counted.mrr_usd_cents, 9),
            goals.goal = 'error_rate' and counted.api_calls > 0,
            toDecimal128(counted.sdk_errors, 9) / greatest(1, counted.api_calls),
            null
        ) as actual
    from goals
    left join counted
        on goals.goal = counted.goal and goals.months = counted.months

)

select
    goal,
    months,
    unit,
    is_upper_limit,
    if(has_launched, launch_day, null) as launched_on,
    if(has_launched, deadline, null) as due_on,
    toUInt8(has_launched and deadline <= {{ as_of_date() }}) as is_due,
    target,
    actual,
    if(is_upper_limit, actual <= target, actual >= target) as is_met
from actuals
