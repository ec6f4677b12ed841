{#
    Query of the terms that hold in each billing period and on how many of its days (UTC): the day of a change has
    the new terms, of several changes a day the last. Days are those of the scheduled period: cancelling changes
    neither what a period includes nor what it costs.
#}
{% macro terms_by_period() -%}
    select
        period.customer_id as customer_id,
        period.subscription_id as subscription_id,
        period.period_start as period_start,
        period.period_end as period_end,
        period.is_trial as is_trial,
        period.is_ended as is_ended,
        toDate(period.period_start, 'UTC') as first_day,
        toDate(period.scheduled_end, 'UTC') as day_after,
        -- A trial cut short by hand may begin and end on one day.
        greatest(1, dateDiff('day', first_day, day_after)) as days_in_period,
        terms.valid_from as valid_from,
        terms.plan_type as plan_type,
        terms.status as status,
        terms.base_price_cents as base_price_cents,
        terms.currency as currency,
        terms.included_impressions as included_impressions,
        terms.included_api_calls as included_api_calls,
        terms.included_data_transfer_gb as included_data_transfer_gb,
        greatest(0, dateDiff(
            'day',
            greatest(first_day, toDate(terms.valid_from, 'UTC')),
            least(day_after, coalesce(toDate(terms.next_change_at, 'UTC'), day_after))
        )) as days
    from {{ ref('int_billing_periods') }} as period
    inner join {{ ref('int_subscription_terms') }} as terms
        on period.subscription_id = terms.subscription_id
    where
        terms.valid_from < period.scheduled_end
        and coalesce(terms.next_change_at > period.period_start, true)
{%- endmacro %}
