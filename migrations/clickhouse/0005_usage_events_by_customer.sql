-- The landing log once more, sorted by customer, for who asks about one: without it a question reads what all
-- customers sent since the models' last run. Part of each insert, so it can't miss a row.
-- It holds what such a question reads, and not all columns, because every byte is written twice.
alter table raw.usage_events add projection if not exists usage_by_customer
(
    select customer_id, loaded_at, batch_id, batch_row, event_id, metric_type, quantity, event_time,
        accepted_at
    order by customer_id, loaded_at
);
-- In the background, for rows that are there already.
alter table raw.usage_events materialize projection usage_by_customer settings mutations_sync = 0;
