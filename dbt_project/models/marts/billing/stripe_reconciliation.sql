{{ config(materialized='view') }}

with periods as (

    select
        customer_id,
        subscription_id,
        period_start,
        period_end,
        is_trial,
        is_ended,
        toString(metric_type) as metric_type
    from {{ ref('usage_by_period') }}

),

summaries as (

    select * from {{ ref('stg_stripe_meter_summaries') }}

),

ledger as (

    select customer_id, metric_type, slot_start, quantity, state, settled_at
    from {{ ref('stg_stripe_meter_ledger') }}

),

counted as (

    select
        slot.customer_id as customer_id,
        toString(slot.metric_type) as metric_type,
        slot.period_start as period_start,
        sumIf(slot.quantity, slot.slot_end <= summary.synced_at) as counted_quantity,
        countIf(slot.slot_end <= summary.synced_at and slot.processed_at > summary.counted_until) as unread_slots
    from {{ ref('metered_usage') }} as slot
    inner join summaries as summary
        on
            slot.customer_id = summary.customer_id
            and toString(slot.metric_type) = summary.metric_type
            and slot.period_start = summary.period_start
    group by customer_id, metric_type, period_start

),

ledger_by_period as (

    select
        period.customer_id as customer_id,
        period.metric_type as metric_type,
        period.period_start as period_start,
        sumIf(ledger.quantity, ledger.state != 'rejected') as ledger_quantity,
        sumIf(ledger.quantity, ledger.state = 'invoiced') as too_late_quantity,
        countIf(ledger.state = 'pending') as pending_entries,
        countIf(ledger.state = 'rejected') as rejected_entries
    from ledger
    asof join periods as period
        on
            ledger.customer_id = period.customer_id
            and ledger.metric_type = period.metric_type
            and ledger.slot_start >= period.period_start
    group by customer_id, metric_type, period_start

),

-- Of what the meter was asked for, what Stripe had accepted by then.
ledger_by_window as (

    select
        summary.customer_id as customer_id,
        summary.metric_type as metric_type,
        summary.period_start as period_start,
        sum(ledger.quantity) as sent_quantity
    from ledger
    asof join summaries as summary
        on
            ledger.customer_id = summary.customer_id
            and ledger.metric_type = summary.metric_type
            and ledger.slot_start >= summary.window_start
    where
        ledger.state = 'sent'
        and ledger.settled_at <= summary.fetched_at
        and ledger.slot_start < summary.window_end
    group by customer_id, metric_type, period_start

),

metered_lines as (

    select
        customer.customer_id as customer_id,
        -- The meter's events are named apex_ and the metric.
        substring(meter.event_name, 6) as metric_type,
        assumeNotNull(line.period_start) as line_start,
        max(assumeNotNull(line.period_end)) as line_end,
        sum(assumeNotNull(line.quantity)) as invoice_quantity,
        max(invoice.finalized_at) as finalized_at
    from {{ ref('stg_stripe_invoice_lines') }} as line
    inner join {{ ref('stg_stripe_invoices') }} as invoice on line.invoice_id = invoice.invoice_id
    inner join {{ ref('stg_stripe_customers') }} as customer
        on invoice.stripe_customer_id = customer.stripe_customer_id
    inner join {{ ref('stg_stripe_prices') }} as price on line.price_id = price.price_id
    inner join {{ ref('stg_stripe_meters') }} as meter on price.meter_id = meter.meter_id
    where invoice.status in ('open', 'paid', 'uncollectible') and line.quantity is not null
    group by customer_id, metric_type, line_start

),

lines_by_period as (

    select
        period.customer_id as customer_id,
        period.metric_type as metric_type,
        period.period_start as period_start,
        sum(line.invoice_quantity) as invoice_quantity,
        min(line.line_start) as line_start,
        max(line.line_end) as line_end,
        max(line.finalized_at) as finalized_at
    from metered_lines as line
    asof join periods as period
        on
            line.customer_id = period.customer_id
            and line.metric_type = period.metric_type
            -- Stripe's periods begin at whole seconds.
            and addSeconds(line.line_start, 1) >= period.period_start
    group by customer_id, metric_type, period_start

),

ledger_by_line as (

    select
        line.customer_id as customer_id,
        line.metric_type as metric_type,
        line.period_start as period_start,
        sumIf(ledger.quantity, ledger.settled_at <= line.finalized_at) as in_time_quantity,
        sumIf(ledger.quantity, ledger.settled_at > line.finalized_at) as late_quantity
    from ledger
    asof join lines_by_period as line
        on
            ledger.customer_id = line.customer_id
            and ledger.metric_type = line.metric_type
            and ledger.slot_start >= line.line_start
    where ledger.state = 'sent' and ledger.slot_start < line.line_end
    group by customer_id, metric_type, period_start

),

billed_customers as (

    select customer.customer_id as customer_id, min(subscription.started_at) as billed_from
    from {{ ref('stg_stripe_subscriptions') }} as subscription
    inner join {{ ref('stg_stripe_customers') }} as customer
        on subscription.stripe_customer_id = customer.stripe_customer_id
    group by customer_id

),

compared as (

    select
        period.customer_id as customer_id,
        person.customer_name as customer_name,
        period.subscription_id as subscription_id,
        period.period_start as period_start,
        period.period_end as period_end,
        period.metric_type as metric_type,
        summary.customer_id != '' as was_asked,
        line.customer_id != '' as has_line,
        counted.counted_quantity as counted_quantity,
        by_period.ledger_quantity as ledger_quantity,
        by_window.sent_quantity as sent_quantity,
        summary.quantity as meter_quantity,
        -- Stripe bills nothing where corrections outweigh use.
        greatest(0, by_line.in_time_quantity) as billable_quantity,
        line.invoice_quantity as invoice_quantity,
        by_period.too_late_quantity as too_late_quantity,
        by_line.late_quantity as late_quantity,
        counted.unread_slots as unread_slots,
        by_period.pending_entries as pending_entries,
        by_period.rejected_entries as rejected_entries,
        -- Two days more than Stripe takes to make and finalise an invoice.
        period.is_ended
        and not period.is_trial
        and billed.customer_id != ''
        and billed.billed_from <= period.period_start
        and period.period_end < subtractDays(summary.fetched_at, 3) as must_have_line,
        summary.fetched_at as compared_at
    from periods as period
    left join summaries as summary
        on
            period.customer_id = summary.customer_id
            and period.metric_type = summary.metric_type
            and period.period_start = summary.period_start
    left join counted
        on
            period.customer_id = counted.customer_id
            and period.metric_type = counted.metric_type
            and period.period_start = counted.period_start
    left join ledger_by_period as by_period
        on
            period.customer_id = by_period.customer_id
            and period.metric_type = by_period.metric_type
            and period.period_start = by_period.period_start
    left join ledger_by_window as by_window
        on
            period.customer_id = by_window.customer_id
            and period.metric_type = by_window.metric_type
            and period.period_start = by_window.period_start
    left join lines_by_period as line
        on
            period.customer_id = line.customer_id
            and period.metric_type = line.metric_type
            and period.period_start = line.period_start
    left join ledger_by_line as by_line
        on
            period.customer_id = by_line.customer_id
            and period.metric_type = by_line.metric_type
            and period.period_start = by_line.period_start
    left join billed_customers as billed on period.customer_id = billed.customer_id
    left join {{ ref('stg_customers') }} as person on period.customer_id = person.customer_id
    where summary.customer_id != '' or by_period.customer_id != ''

)

select
    customer_id,
    customer_name,
    subscription_id,
    period_start,
    period_end,
    metric_type,
    counted_quantity,
    ledger_quantity,
    sent_quantity,
    meter_quantity,
    if(has_line, billable_quantity, null) as billable_quantity,
    if(has_line, invoice_quantity, null) as invoice_quantity,
    too_late_quantity,
    late_quantity,
    multiIf(
        pending_entries > 0, 'pending',
        not was_asked, 'not_compared',
        counted_quantity != ledger_quantity and unread_slots > 0, 'not_sent_yet',
        counted_quantity != ledger_quantity and rejected_entries > 0, 'rejected',
        counted_quantity != ledger_quantity, 'ledger_differs',
        sent_quantity != meter_quantity, 'tampered_at_stripe',
        has_line and invoice_quantity != compared.billable_quantity, 'invoice_differs',
        must_have_line and not has_line and sent_quantity > 0, 'not_on_invoice',
        late_quantity != 0, 'late_after_invoice',
        too_late_quantity != 0, 'too_late_for_metering',
        ''
    ) as cause,
    toUInt8(cause not in ('', 'not_sent_yet', 'late_after_invoice', 'too_late_for_metering')) as is_difference,
    if(was_asked, compared_at, null) as compared_at
from compared
settings join_use_nulls = 0
