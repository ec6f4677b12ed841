-- Objects as Stripe sent them, all types in one table: what a type means is decided downstream (staging.stg_stripe_*),
-- so a new type or field needs no migration.
--
-- The engine keeps the row that was fetched last, whatever the order of landing, but it drops the others only when
-- it merges: a reader must say FINAL. Of two rows of one instant the one inserted last is kept.
--
-- What Stripe tells of a deleted object is its id and nothing else, so a deletion is a row of its own beside the
-- last known state (`is_deleted` is part of the key): money of a deleted customer still finds its customer.
-- `livemode` is part of the key, because ids that people choose (coupons, products) repeat between the modes.
--
-- Not partitioned: a replaced row may be of any age, and rows are replaced within a partition only.
-- Synced on insert: the cursor of whoever fetches moves on as soon as an insert is answered.
create table if not exists raw.stripe_objects
(
    object       LowCardinality(String)  comment 'type, as Stripe names it: customer, invoice, billing.meter',
    id           String                  comment 'id of the object, unique in its type and mode',
    livemode     Bool                    comment 'mode of the key that fetched it; not every object says its own',
    is_deleted   UInt8                   comment '1: the object is deleted, and this row says no more than that',
    payload      String                  comment 'JSON exactly as Stripe sent it' codec(ZSTD(3)),
    api_version  LowCardinality(String)  comment 'version of Stripe''s API that gave the payload its form',
    fetched_at   DateTime64(6, 'UTC')    comment 'when it was asked for, by the platform''s clock; the newest counts'
)
engine = ReplacingMergeTree(fetched_at)
order by (object, id, livemode, is_deleted)
settings fsync_after_insert = 1, fsync_part_directory = 1;
