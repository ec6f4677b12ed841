-- final: a later fetch replaces a row, and the engine does that only when it merges.
-- With it an object has two rows at most: its last known state, and its deletion; either may be missing.
select
    object,
    id as object_id,
    anyIf(landed.payload, not landed.is_deleted) as payload,
    anyIf(landed.api_version, not landed.is_deleted) as api_version,
    -- An id that people choose can come back after a deletion.
    toUInt8(
        countIf(landed.is_deleted) > 0
        and maxIf(landed.fetched_at, landed.is_deleted) >= maxIf(landed.fetched_at, not landed.is_deleted)
    ) as is_deleted,
    max(landed.fetched_at) as fetched_at
from {{ source('raw', 'stripe_objects') }} as landed final
where livemode = {{ var('stripe_livemode') }}
group by object, id
