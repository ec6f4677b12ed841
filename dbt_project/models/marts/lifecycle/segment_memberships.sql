with log as (

    select customer_id, segment, as_of_date
    from {{ ref('segment_membership_daily') }}
    where as_of_date <= {{ as_of_date() }}

),

logged_days as (

    -- Days are numbered by their order, so that a day on which nothing ran makes nobody leave. A day that ran
    -- with nobody in any segment stands in int_segment_days only, which is younger than the log.
    select
        as_of_date,
        row_number() over (order by as_of_date) as day_number
    from (
        select as_of_date from log
        union distinct
        select as_of_date
        from {{ ref('int_segment_days') }}
        where as_of_date <= {{ as_of_date() }}
    )

),

numbered as (

    select
        log.customer_id as customer_id,
        log.segment as segment,
        log.as_of_date as as_of_date,
        logged_days.day_number as day_number,
        -- Equal for days that follow one another without a gap.
        toInt64(logged_days.day_number) - toInt64(row_number() over (
            partition by log.customer_id, log.segment order by log.as_of_date
        )) as stay
    from log
    inner join logged_days
        on log.as_of_date = logged_days.as_of_date

),

stays as (

    select
        customer_id,
        segment,
        min(as_of_date) as entered_on,
        max(day_number) as last_day_number
    from numbered
    group by customer_id, segment, stay

)

select
    stays.customer_id as customer_id,
    stays.segment as segment,
    stays.entered_on as entered_on,
    if(next_day.day_number = 0, null, next_day.as_of_date) as left_on
from stays
left join logged_days as next_day
    on stays.last_day_number + 1 = next_day.day_number
