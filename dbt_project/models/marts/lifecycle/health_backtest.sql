{{ config(order_by=['month', 'band']) }}

{%- set horizon = var('churn_horizon_days') | int %}

with logged_months as (

    -- One day speaks for a month, the first that was logged; counted when its whole horizon has passed.
    select min(as_of_date) as scored_on
    from {{ ref('customer_health_daily') }}
    group by toStartOfMonth(as_of_date)
    having scored_on + {{ horizon }} < {{ as_of_date() }}

),

customer_terms as (

    -- Days of a beginning and of an end; a customer has left on a day that ends with no subscription open.
    select
        customer_id,
        toDate('2149-06-06') as never,
        groupArray((toDate(started_at, 'UTC'), coalesce(toDate(cancelled_at, 'UTC'), never))) as terms,
        arrayMap(
            term -> term.2,
            arrayFilter(
                term -> term.2 != never and not arrayExists(other -> other.1 <= term.2 and other.2 > term.2, terms),
                terms
            )
        ) as left_on
    from {{ ref('stg_subscriptions') }}
    group by customer_id

),

judged as (

    select
        toStartOfMonth(health.as_of_date) as month,
        health.as_of_date as scored_on,
        health.band as band,
        arrayExists(day -> day > scored_on and day <= scored_on + {{ horizon }}, left_on) as has_left
    from {{ ref('customer_health_daily') }} as health
    inner join customer_terms
        on health.customer_id = customer_terms.customer_id
    where
        health.as_of_date in (select scored_on from logged_months)
        and arrayExists(term -> term.1 <= health.as_of_date and term.2 > health.as_of_date, terms)

),

counted as (

    select
        month,
        band,
        any(scored_on) as scored_on,
        count() as customers,
        countIf(has_left) as churned,
        churned / customers as churn_rate,
        {{ threshold('health', 'backtest_normal_quantile') }} as z
    from judged
    group by month, band

),

intervals as (

    -- Wilson's, which holds for few customers and for rates of 0 and 1.
    select
        *,
        z * z / customers as weight,
        (churn_rate + weight / 2) / (1 + weight) as centre,
        z * sqrt(churn_rate * (1 - churn_rate) / customers + weight / (4 * customers)) / (1 + weight) as half_width
    from counted

)

select
    month,
    band,
    scored_on,
    customers,
    churned,
    churn_rate,
    round(greatest(0, centre - half_width), 6) as churn_rate_low,
    round(least(1, centre + half_width), 6) as churn_rate_high
from intervals
