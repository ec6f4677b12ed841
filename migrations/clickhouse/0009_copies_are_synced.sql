-- A copy forgets what had changed as soon as its rows are stored, so they must be on disk by then; a server
-- syncs inserts only where a table says so.
alter table raw.customers modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.subscriptions modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.subscription_changes modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.payments modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.events modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.email_log modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.webhook_inbox modify setting fsync_after_insert = 1, fsync_part_directory = 1;
alter table raw.copy_marks modify setting fsync_after_insert = 1, fsync_part_directory = 1;
