"""The write-ahead spool: what the API acknowledged and the loader has not yet landed.

A segment is one file. Its life shows in its name: `.new` (being made, holds nothing), `.open` (a worker
appends to it and holds a lock on it), `.seg` (sealed, never written again), gone (landed in ClickHouse).

Inner files: `frames` (bytes of one frame), `segments` (names and folder), `writing`, `group_commit` (who
waits for what), `reading` (and recovery).
"""
