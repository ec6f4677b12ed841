-- What a dead letter needs to be loaded again: its bytes exactly as they were in the spool, and how many rows
-- they should be. Letters from before this have their bytes in `payload` only.
alter table raw.usage_dead_letters
    add column if not exists row_count UInt32 default 1 comment 'rows of the frame, from batch_row on' after batch_row;

alter table raw.usage_dead_letters
    add column if not exists raw String default '' comment 'MessagePack as in the spool' after payload;

-- Each try to load a letter again. A letter is settled once one of them landed; nothing is ever deleted.
create table if not exists raw.usage_dead_letter_replays
(
    batch_id   String,
    batch_row  UInt32,
    landed     Bool,
    reason     String                         comment 'why it failed again; empty when it landed',
    tried_at   DateTime64(6, 'UTC') default now64(6)
)
engine = MergeTree
order by (batch_id, batch_row, tried_at)
settings fsync_after_insert = 1, fsync_part_directory = 1;

-- Letters that are not settled, each with the reason of the last try.
create view if not exists raw.usage_dead_letters_open as
select
    letters.batch_id as batch_id,
    letters.batch_row as batch_row,
    letters.row_count as row_count,
    letters.payload as payload,
    letters.raw as raw,
    if(coalesce(replays.tries, 0) = 0, letters.reason, coalesce(replays.reason, '')) as reason,
    letters.seen_at as seen_at,
    coalesce(replays.tries, 0) as tries
from
(
    select * from raw.usage_dead_letters
    order by seen_at
    limit 1 by batch_id, batch_row
) as letters
left join
(
    select
        batch_id,
        batch_row,
        count() as tries,
        argMax(reason, tried_at) as reason,
        max(landed) as landed
    from raw.usage_dead_letter_replays
    group by batch_id, batch_row
) as replays
on letters.batch_id = replays.batch_id and letters.batch_row = replays.batch_row
where not coalesce(replays.landed, false);
