{{
    config(
        materialized='incremental',
        incremental_strategy='delete_insert',
        unique_key=['feature_date', 'customer_id'],
        on_schema_change='append_new_columns',
        order_by=['feature_date', 'customer_id'],
        settings={'fsync_after_insert': 1, 'fsync_part_directory': 1},
        pre_hook=[
            '{{ end_leftover_statements() }}',
            "{{ begin_reading('churn_features', 'int_usage_arrivals') }}",
        ],
        post_hook=['{{ delete_former_features() }}', "{{ finish_reading('churn_features') }}"],
    )
}}

{%- set sums = [
    'impressions', 'api_calls', 'mediated_revenue', 'sdk_errors', 'sdk_crashes', 'support_tickets', 'doc_views',
    'console_logins',
] %}

with feature_dates as (

    select arraySort(groupUniqArray(feature_date)) as dates
    from {{ ref('int_churn_population') }}

),

failed_payments as (

    select
        customer_id,
        arrayJoin(arrayFilter(
            feature_date -> dateDiff('day', toDate(occurred_at, 'UTC'), feature_date) between 1 and 90,
            assumeNotNull((select dates from feature_dates))
        )) as feature_date,
        count() as failed_payments_90d
    from {{ ref('stg_payments') }}
    where status = 'failed'
    group by customer_id, feature_date

),

population as (

    -- What a row stands on beside use is hashed, so that a row is computed anew when that changes.
    select
        population.customer_id as customer_id,
        population.feature_date as feature_date,
        population.active_since as active_since,
        failed.failed_payments_90d as failed_payments_90d,
        sipHash64('{{ var("churn_label") }}', active_since, failed_payments_90d) as row_basis
    from {{ ref('int_churn_population') }} as population
    left join failed_payments as failed
        on population.customer_id = failed.customer_id and population.feature_date = failed.feature_date

),

{% if is_incremental() %}
changed_use as (

    -- Since when the features of a customer may know something that they did not when they were stored. In
    -- daily work that is the newest feature date alone; an import of history reaches back.
    select customer_id, min(greatest(usage_date, known_on)) as changed_on
    from {{ ref('int_usage_arrivals') }}
    where processed_at > {{ stored_watermark('churn_features') }}
    group by customer_id

),
{% endif %}

computed as (

    select *
    from population
    {% if is_incremental() %}
    where
        (customer_id, feature_date, row_basis) not in (select customer_id, feature_date, row_basis from {{ this }})
        or (customer_id, feature_date) in (
            select changed_use.customer_id, population.feature_date
            from population
            inner join changed_use
                on population.customer_id = changed_use.customer_id
            where population.feature_date > changed_use.changed_on
        )
    {% endif %}

),

arrivals as (

    -- A day as it became known from one day on, each kind of use in a column.
    select
        usage.customer_id as customer_id,
        usage.usage_date as usage_date,
        usage.known_on as known_on,
        {% for metric in sums -%}
        sumIf(usage.quantity, usage.metric_type = '{{ metric }}') as {{ metric }}_of,
        {% endfor -%}
        groupUniqArrayArrayIf(usage.dimension_values, usage.metric_type = 'feature_used') as features_of,
        sumMapIf(
            map(toString(usage.metric_type), usage.quantity),
            metric.kind = 'usage'
        ) as billed_of
    from {{ ref('int_usage_arrivals') }} as usage
    left join {{ ref('metric_catalogue') }} as metric
        on usage.metric_type = metric.metric_type
    where
        usage.processed_at <= {{ begun_watermark('churn_features') }}
        {% if is_incremental() %}
        and usage.customer_id in (select customer_id from computed)
        {% endif %}
    group by customer_id, usage_date, known_on

),

day_versions as (

    -- A day of use as it was known after known_on and up to known_until.
    select
        customer_id,
        usage_date,
        known_on,
        coalesce(leadInFrame(toNullable(known_on)) over versions, toDate('2149-06-06')) as known_until,
        {% for metric in sums -%}
        sum({{ metric }}_of) over so_far as {{ metric }},
        {% endfor -%}
        arrayDistinct(groupArrayArray(features_of) over so_far) as features,
        arrayExists(quantity -> quantity > 0, mapValues(sumMap(billed_of) over so_far)) as is_active
    from arrivals
    window
        so_far as (
            partition by customer_id, usage_date order by known_on rows between unbounded preceding and current row
        ),
        versions as (
            partition by customer_id, usage_date order by known_on
            rows between unbounded preceding and unbounded following
        )

),

known_days as (

    -- The one version of each day that a feature date knows.
    select
        *,
        arrayJoin(arrayFilter(
            feature_date -> feature_date > usage_date and feature_date > known_on and feature_date <= known_until,
            assumeNotNull((select arraySort(groupUniqArray(feature_date)) from computed))
        )) as feature_date
    from day_versions

),

usage as (

    select
        customer_id,
        feature_date,
        sumIf(impressions, usage_date >= feature_date - 7) as impressions_7d,
        sumIf(impressions, usage_date >= feature_date - 30) as impressions_30d,
        sumIf(
            impressions, usage_date < feature_date - 30 and usage_date >= feature_date - 60
        ) as impressions_previous_30d,
        sumIf(impressions, usage_date >= feature_date - 90) as impressions_90d,
        sumIf(api_calls, usage_date >= feature_date - 30) as api_calls_30d,
        sumIf(mediated_revenue, usage_date >= feature_date - 30) as mediated_revenue_micros_30d,
        sumIf(sdk_errors, usage_date >= feature_date - 30) as sdk_errors_30d,
        sumIf(sdk_crashes, usage_date >= feature_date - 30) as sdk_crashes_30d,
        sumIf(support_tickets, usage_date >= feature_date - 30) as support_tickets_30d,
        sumIf(doc_views, usage_date >= feature_date - 30) as doc_views_30d,
        sumIf(console_logins, usage_date >= feature_date - 30) as console_logins_30d,
        uniqExactArrayIf(features, usage_date >= feature_date - 30) as features_30d,
        maxIf(usage_date, console_logins > 0) as last_login_on,
        max(console_logins > 0) as has_login,
        min(usage_date) as first_used_on,
        minIf(usage_date, is_active) as first_active_on,
        maxIf(usage_date, is_active) as last_active_on,
        countIf(is_active) as active_days,
        countIf(is_active and usage_date >= feature_date - 30) as active_days_30d,
        countIf(is_active and usage_date >= feature_date - 90) as active_days_90d
    from known_days
    group by customer_id, feature_date

),

joined as (

    select
        computed.customer_id as customer_id,
        computed.feature_date as feature_date,
        computed.row_basis as row_basis,
        computed.failed_payments_90d as failed_payments_90d,
        usage.* except (customer_id, feature_date),
        dateDiff('day', computed.active_since, computed.feature_date) as days_in_population,
        if(
            usage.customer_id = '',
            days_in_population,
            greatest(days_in_population, dateDiff('day', usage.first_used_on, computed.feature_date))
        ) as tenure
    from computed
    left join usage
        on computed.customer_id = usage.customer_id and computed.feature_date = usage.feature_date

),

measured as (

    select
        *,
        -- Who was never seen has been away for as long as known.
        if(active_days > 0, dateDiff('day', last_active_on, feature_date), tenure) as days_inactive,
        if(active_days > 1, dateDiff('day', first_active_on, last_active_on) / (active_days - 1), 0) as mean_gap
    from joined

)

select
    customer_id,
    feature_date,
    toFloat64(impressions_30d) as usage_last_30_days,
    multiIf(
        impressions_previous_30d > 0,
        least(1000, greatest(-100, 100 * (impressions_30d - impressions_previous_30d) / impressions_previous_30d)),
        impressions_30d > 0, 100,
        0
    ) as usage_change_pct,
    toFloat64(failed_payments_90d) as failed_payments_count,
    toFloat64(support_tickets_30d) as support_tickets_count,
    toFloat64(if(has_login, dateDiff('day', last_login_on, feature_date), tenure)) as days_since_last_login,
    toFloat64(20 * least(5, features_30d)) as feature_usage_score,
    toFloat64(least(1, greatest(0, sdk_errors_30d / greatest(1, api_calls_30d)))) as api_error_rate,
    toFloat64(impressions_7d) as usage_last_7_days,
    toFloat64(impressions_90d) as usage_last_90_days,
    if(impressions_30d > 0, impressions_7d * 30 / (impressions_30d * 7), 0) as usage_pace,
    toFloat64(api_calls_30d) as api_calls_last_30_days,
    mediated_revenue_micros_30d / 1000000 as revenue_usd_last_30_days,
    toFloat64(sdk_crashes_30d) as crashes_count,
    toFloat64(doc_views_30d) as doc_views_count,
    toFloat64(console_logins_30d) as logins_count,
    toFloat64(active_days_30d) as active_days_last_30_days,
    toFloat64(active_days_90d) as active_days_last_90_days,
    toFloat64(active_days) as active_days_ever,
    toFloat64(days_inactive) as days_since_last_active,
    mean_gap as mean_days_between_active_days,
    if(mean_gap > 0, least(100, days_inactive / mean_gap), 0) as inactivity_in_mean_gaps,
    toFloat64(tenure) as tenure_days,
    row_basis
from measured
