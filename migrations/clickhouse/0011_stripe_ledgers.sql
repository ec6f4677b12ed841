-- Copies of what Stripe was told: read with `final`, as all copies.
create table if not exists raw.stripe_meter_ledger
(
    id Int64, livemode Bool, customer_id String, stripe_customer_id String, subscription_id String,
    metric_type LowCardinality(String), period_start DateTime64(6, 'UTC'), slot_start DateTime64(6, 'UTC'),
    number Int32, quantity Int64, identifier String, state LowCardinality(String),
    created_at DateTime64(6, 'UTC'), first_sent_at Nullable(DateTime64(6, 'UTC')),
    settled_at Nullable(DateTime64(6, 'UTC')), error_message Nullable(String),
    copy_number UInt64 comment 'the copy that brought this row', is_deleted UInt8 default 0,
    snapshot_at DateTime64(6, 'UTC') comment 'when it was copied, by the platform''s clock'
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id
settings fsync_after_insert = 1, fsync_part_directory = 1;

create table if not exists raw.stripe_invoice_ledger
(
    id Int64, livemode Bool, customer_id String, stripe_customer_id String, line_type LowCardinality(String),
    metric_type LowCardinality(String), period_start DateTime64(6, 'UTC'), period_end DateTime64(6, 'UTC'),
    number Int32, amount_cents Int64, currency LowCardinality(String), state LowCardinality(String),
    stripe_id Nullable(String), created_at DateTime64(6, 'UTC'), settled_at Nullable(DateTime64(6, 'UTC')),
    error_message Nullable(String),
    copy_number UInt64, is_deleted UInt8 default 0, snapshot_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(copy_number, is_deleted) order by id
settings fsync_after_insert = 1, fsync_part_directory = 1;

-- What Stripe's meters added up to, asked for by customer, metric and billing period. Who asks last wins; a reader
-- says `final`.
create table if not exists raw.stripe_meter_summaries
(
    livemode       Bool,
    customer_id    String,
    metric_type    LowCardinality(String),
    period_start   DateTime64(6, 'UTC'),
    window_start   DateTime64(6, 'UTC')  comment 'whole minute, inclusive',
    window_end     DateTime64(6, 'UTC')  comment 'whole minute, exclusive',
    quantity       Int64                 comment 'in storage units',
    counted_until  DateTime64(6, 'UTC')  comment 'changes of metered_usage before it stood in the ledger by then',
    synced_at      DateTime64(6, 'UTC')  comment 'so did use of slots that had ended by it',
    fetched_at     DateTime64(6, 'UTC')  comment 'when Stripe was asked, by the platform''s clock'
)
engine = ReplacingMergeTree(fetched_at)
order by (livemode, customer_id, metric_type, period_start)
settings fsync_after_insert = 1, fsync_part_directory = 1;
