-- The landing log of telemetry: one row for each event that was answered as accepted, in the order of loading.
-- A repeat that the API has forgotten is among them.
-- What counts once is decided downstream (intermediate.int_usage_events); this table proves what was received.
--
-- Sorted and partitioned by load time: an insert touches one partition whatever timestamps its events carry,
-- so a wild timestamp can't make it fail, a batch is never torn across partitions, and the models read only
-- what is new. (batch_id, batch_row) names a row for ever: the loader counts by batch_id before it repeats an
-- insert, instead of trusting the engine's deduplication window.
create table if not exists raw.usage_events
(
    customer_id        String                      comment 'resolved from the API key',
    event_id           String                      comment 'idempotency key of the client, unique per customer',
    metric_type        LowCardinality(String)      comment 'a row of the metric catalogue',
    quantity           Int64                       comment 'in storage units: the metric''s unit times 10^scale of the catalogue',
    event_time         DateTime64(3, 'UTC')        comment 'when it happened, by the client; arrival when absent',
    accepted_at        DateTime64(6, 'UTC')        comment 'when the API made it durable',
    metadata           String                      comment 'JSON object' codec(ZSTD(1)),
    corrects_event_id  String                      comment 'event that a negative quantity corrects; empty otherwise',
    correction_reason  String                      comment 'why; empty when it corrects nothing',
    batch_id           LowCardinality(String)      comment 'spool segment that carried it',
    batch_row          UInt32                      comment 'position in the segment, from 0',
    loaded_at          DateTime64(6, 'UTC') default now64(6) comment 'bookkeeping, not business time'
)
engine = MergeTree
partition by toYYYYMM(loaded_at)
order by (loaded_at, batch_id, batch_row)
settings fsync_after_insert = 1, fsync_part_directory = 1;

-- Events that can't be loaded, whole and with the reason.
create table if not exists raw.usage_dead_letters
(
    batch_id   String,
    batch_row  UInt32,
    payload    String,
    reason     String,
    seen_at    DateTime64(6, 'UTC') default now64(6)
)
engine = MergeTree
order by (seen_at, batch_id, batch_row);
