-- Copies of operational tables as rows that replace one another: a copy brings the rows that changed since the
-- one before. The newest copy of a row wins, and a deleted row leaves a marker; who reads says `final`.
-- The tables are made anew, since they hold copies only: the next copy of each is a whole one.
create or replace table raw.customers
(
    id String, name String, email String, company_size Nullable(Int32), country Nullable(String),
    source LowCardinality(String), external_ref Nullable(String), created_at DateTime64(6, 'UTC'),
    copy_number UInt64 comment 'the copy that brought this row', is_deleted UInt8 default 0,
    snapshot_at DateTime64(6, 'UTC') comment 'when it was copied, by the platform''s clock'
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

create or replace table raw.subscriptions
(
    id String, customer_id String, plan_type LowCardinality(String), status LowCardinality(String),
    base_price_cents Int64, currency LowCardinality(String), included_impressions Int64,
    included_api_calls Nullable(Int64), included_data_transfer_gb Nullable(Int64),
    platform_fee_basis_points Nullable(Int32), platform_fee_minimum_cents Int64 default 0,
    started_at DateTime64(6, 'UTC'), trial_end Nullable(DateTime64(6, 'UTC')),
    current_period_start DateTime64(6, 'UTC'), current_period_end DateTime64(6, 'UTC'),
    cancelled_at Nullable(DateTime64(6, 'UTC')),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

-- The terms of each subscription from `effective_at` on, until the next change.
create or replace table raw.subscription_changes
(
    id Int64, subscription_id String, customer_id String, effective_at DateTime64(6, 'UTC'),
    plan_type LowCardinality(String), status LowCardinality(String), base_price_cents Int64,
    currency LowCardinality(String), included_impressions Int64,
    included_api_calls Nullable(Int64), included_data_transfer_gb Nullable(Int64),
    platform_fee_basis_points Nullable(Int32), platform_fee_minimum_cents Int64 default 0,
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

create or replace table raw.payments
(
    id String, customer_id String, invoice_id String, attempt_number Int32, status LowCardinality(String),
    amount_cents Int64, currency LowCardinality(String), failure_code Nullable(String),
    occurred_at DateTime64(6, 'UTC'),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

-- Without `data`, which may hold what only the customer should read.
create or replace table raw.events
(
    id Int64, event_type LowCardinality(String), customer_id Nullable(String), occurrence_key Nullable(String),
    priority Int16, created_at DateTime64(6, 'UTC'), attempts Int32, outcome LowCardinality(Nullable(String)),
    processed_at Nullable(DateTime64(6, 'UTC')), error_message Nullable(String),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

create or replace table raw.email_log
(
    id Int64, event_id Int64, customer_id Nullable(String), email_type LowCardinality(String),
    recipient String, subject String, provider LowCardinality(String), provider_message_id Nullable(String),
    sent_at DateTime64(6, 'UTC'),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

create or replace table raw.webhook_inbox
(
    id Int64, provider LowCardinality(String), event_id String, event_type LowCardinality(String),
    payload String comment 'as it was signed', received_at DateTime64(6, 'UTC'),
    processed_at Nullable(DateTime64(6, 'UTC')),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id;

-- One row a copy. When the newest token of a table is not the one that PostgreSQL holds, either store has
-- been restored, and the next copy is a whole one.
create table if not exists raw.copy_marks
(
    table_name LowCardinality(String), number UInt64, token String,
    copied_at DateTime64(6, 'UTC') comment 'by the platform''s clock'
)
engine = MergeTree order by (table_name, number);

-- Whether a key for history brought the event: such an event was known when it happened, and only its arrival
-- here is recent.
alter table raw.usage_events add column if not exists historical UInt8 default 0 after correction_reason;
