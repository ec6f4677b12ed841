-- Copies of the operational tables that models need. Each snapshot asset fills a twin table and exchanges the
-- two, so that a reader sees the whole of the old copy or the whole of the new one.
create table if not exists raw.customers
(
    id String, name String, email String, company_size Nullable(Int32), country Nullable(String),
    source LowCardinality(String), external_ref Nullable(String), created_at DateTime64(6, 'UTC'),
    snapshot_at DateTime64(6, 'UTC')
)
engine = MergeTree order by id;

create table if not exists raw.subscriptions
(
    id String, customer_id String, plan_type LowCardinality(String), status LowCardinality(String),
    base_price_cents Int64, currency LowCardinality(String), included_impressions Int64,
    started_at DateTime64(6, 'UTC'), trial_end Nullable(DateTime64(6, 'UTC')),
    current_period_start DateTime64(6, 'UTC'), current_period_end DateTime64(6, 'UTC'),
    cancelled_at Nullable(DateTime64(6, 'UTC')), snapshot_at DateTime64(6, 'UTC')
)
engine = MergeTree order by (customer_id, id);

create table if not exists raw.payments
(
    id String, customer_id String, invoice_id String, attempt_number Int32, status LowCardinality(String),
    amount_cents Int64, currency LowCardinality(String), failure_code Nullable(String),
    occurred_at DateTime64(6, 'UTC'), snapshot_at DateTime64(6, 'UTC')
)
engine = MergeTree order by (customer_id, occurred_at, id);

create table if not exists raw.email_log
(
    id Int64, event_id Int64, customer_id Nullable(String), email_type LowCardinality(String),
    recipient String, subject String, provider LowCardinality(String), sent_at DateTime64(6, 'UTC'),
    snapshot_at DateTime64(6, 'UTC')
)
engine = MergeTree order by (sent_at, id);
