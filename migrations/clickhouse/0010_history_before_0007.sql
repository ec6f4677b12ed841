-- Of events that landed before 0007 nobody wrote down whether a key for history brought them. What came later than
-- the API lets other keys come did; the rest stays known from its arrival on.
alter table raw.usage_events
    modify column historical UInt8 default event_time < accepted_at - interval 35 day;
