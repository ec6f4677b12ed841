-- A segment is removed from the spool once its dead letters are inserted, so they must be on disk by then,
-- as rows of `raw.usage_events` are.
alter table raw.usage_dead_letters modify setting fsync_after_insert = 1, fsync_part_directory = 1;
