with segments as (

    select customer_id, arraySort(groupArray(toString(segment))) as segments
    from {{ ref('int_segment_members') }}
    group by customer_id

),

risks as (

    select customer_id, arraySort(groupArray(toString(reason))) as reasons
    from {{ ref('at_risk_customers') }}
    group by customer_id

),

current_use as (

    -- What the open period's use beyond the included quantities costs so far, rounded as invoice lines are. Who is
    -- on the way out of one subscription may have begun the next.
    select
        usage.subscription_id as subscription_id,
        usage.period_start as period_start,
        usage.period_end as period_end,
        sumIf(usage.quantity, usage.metric_type = 'impressions') as impressions,
        sumIf(usage.overage_quantity, usage.metric_type = 'impressions') as overage_impressions,
        sum({{ overage_cents(
            'if(usage.is_trial, 0, usage.overage_quantity)',
            'allowance.overage_price_cents',
            'allowance.overage_price_quantity'
        ) }}) as overage_cents
    from {{ ref('usage_by_period') }} as usage
    left join {{ ref('int_period_allowances') }} as allowance
        on
            usage.subscription_id = allowance.subscription_id
            and usage.period_start = allowance.period_start
            and usage.metric_type = allowance.metric_type
    where not usage.is_ended
    group by usage.subscription_id, usage.period_start, usage.period_end

),

plan_changes as (

    -- First instant of the run of terms with the plan of the newest ones, by subscription.
    select
        subscription_id,
        minIf(valid_from, valid_from > last_other_plan) as plan_since
    from (
        select
            terms.*,
            maxIf(valid_from, plan_type != newest_plan_type) over (partition by subscription_id) as last_other_plan
        from (
            select
                *,
                last_value(plan_type) over (
                    partition by subscription_id order by valid_from
                    rows between unbounded preceding and unbounded following
                ) as newest_plan_type
            from {{ ref('int_subscription_terms') }}
            where valid_from < {{ as_of_instant() }}
        ) as terms
    )
    group by subscription_id

),

payments as (

    select
        customer_id,
        currency,
        minIf(toDate(occurred_at, 'UTC'), status = 'succeeded' and amount_cents > 0) as first_paid_on,
        countIf(status = 'succeeded' and amount_cents > 0) > 0 as has_paid,
        sumIf(amount_cents, status = 'succeeded') as paid_cents,
        toString(argMax(status, (occurred_at, attempt_number))) as last_status,
        max(occurred_at) as last_at
    from {{ ref('stg_payments') }}
    where toDate(occurred_at, 'UTC') <= {{ as_of_date() }}
    group by customer_id, currency

),

steps as (

    select customer_id, arraySort(groupArray(toString(step))) as steps
    from {{ ref('onboarding') }}
    where toDate(occurred_at, 'UTC') <= {{ as_of_date() }}
    group by customer_id

),

growth_loops as (

    select customer_id, arraySort(groupArray(toString(growth_loop))) as loops
    from {{ ref('growth_loop_candidates') }}
    group by customer_id

),

newest_scores as (

    select
        customer_id,
        argMax(probability, (feature_date, scored_at)) as probability,
        max(feature_date) as scored_on
    from {{ ref('stg_churn_scores') }}
    where
        feature_date <= {{ as_of_date() }}
        and dateDiff('day', feature_date, {{ as_of_date() }}) <= {{ threshold('segment', 'churn_score_max_age_days') }}
    group by customer_id

)

select
    customer.customer_id as customer_id,
    usage.as_of_date as as_of_date,
    customer.customer_name as customer_name,
    customer.email as email,
    customer.country as country,
    customer.company_size as company_size,
    customer.source as source,
    customer.created_at as created_at,
    usage.known_since as known_since,
    if(subscription.customer_id = '', null, subscription.subscription_id) as subscription_id,
    if(subscription.customer_id = '', null, toString(subscription.plan_type)) as plan_type,
    if(subscription.customer_id = '', 'none', toString(subscription.status)) as status,
    toUInt8(subscription.is_open) as has_open_subscription,
    -- Money that comes in each month: not a trial's, and none while suspended.
    if(
        subscription.is_open and subscription.status in ('active', 'past_due'), subscription.base_price_cents, 0
    ) as mrr_cents,
    if(subscription.customer_id = '', null, toString(subscription.currency)) as currency,
    if(subscription.customer_id = '', null, subscription.started_at) as subscription_started_at,
    subscription.cancelled_at as cancelled_at,
    if(plan_changes.subscription_id = '', null, plan_changes.plan_since) as plan_since,
    if(payments.has_paid, payments.first_paid_on, null) as first_paid_on,
    payments.paid_cents as lifetime_paid_cents,
    if(payments.customer_id = '', null, payments.last_status) as last_payment_status,
    if(payments.customer_id = '', null, payments.last_at) as last_payment_at,
    if(current_use.subscription_id = '', null, current_use.period_start) as current_period_start,
    if(current_use.subscription_id = '', null, current_use.period_end) as current_period_end,
    current_use.impressions as current_period_impressions,
    current_use.overage_impressions as current_period_overage_impressions,
    current_use.overage_cents as current_period_overage_cents,
    usage.last_active_on as last_active_on,
    usage.active_days_30d as active_days_30d,
    usage.impressions_30d as impressions_30d,
    usage.impressions_previous_30d as impressions_previous_30d,
    usage.api_calls_30d as api_calls_30d,
    usage.data_transfer_bytes_30d as data_transfer_bytes_30d,
    usage.mediated_revenue_micros_30d as mediated_revenue_micros_30d,
    usage.features_30d as features_30d,
    usage.support_tickets_30d as support_tickets_30d,
    usage.console_logins_30d as console_logins_30d,
    life.nps_score as nps_score,
    life.teammates_invited as teammates_invited,
    steps.steps as onboarding_steps,
    if(health.customer_id = '', null, health.score) as health_score,
    if(health.customer_id = '', null, toString(health.band)) as health_band,
    segments.segments as segments,
    risks.reasons as at_risk_reasons,
    growth_loops.loops as growth_loops,
    if(upsell.customer_id = '', null, toString(upsell.next_plan_type)) as upsell_plan_type,
    if(upsell.customer_id = '', null, upsell.saving_cents) as upsell_saving_cents,
    if(newest_scores.customer_id = '', null, newest_scores.probability) as churn_probability,
    if(newest_scores.customer_id = '', null, newest_scores.scored_on) as churn_scored_on
from {{ ref('int_customer_usage') }} as usage
inner join {{ ref('stg_customers') }} as customer
    on usage.customer_id = customer.customer_id
left join {{ ref('int_current_subscriptions') }} as subscription
    on usage.customer_id = subscription.customer_id
left join {{ ref('customer_health') }} as health
    on usage.customer_id = health.customer_id
left join segments
    on usage.customer_id = segments.customer_id
left join risks
    on usage.customer_id = risks.customer_id
left join newest_scores
    on usage.customer_id = newest_scores.customer_id
left join current_use
    on subscription.subscription_id = current_use.subscription_id
left join plan_changes
    on subscription.subscription_id = plan_changes.subscription_id
left join payments
    on usage.customer_id = payments.customer_id and subscription.currency = payments.currency
left join {{ ref('int_customer_life') }} as life
    on usage.customer_id = life.customer_id
left join steps
    on usage.customer_id = steps.customer_id
left join growth_loops
    on usage.customer_id = growth_loops.customer_id
left join {{ ref('upsell_candidates') }} as upsell
    on usage.customer_id = upsell.customer_id
