"""What the migrations of ClickHouse promise of the raw tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from clickhouse_connect.driver.client import Client

from apex_pipelines.defs.warehouse.copies import COPIES


def test_raw_tables_state_themselves_that_inserts_are_synced(warehouse: Client) -> None:
    """A server of one's own has it off by default, and then a 2xx promises too much."""
    created = warehouse.query(
        "select name, create_table_query from system.tables "
        "where database = 'raw' and engine like '%MergeTree' and name != 'schema_migrations'"
    ).result_rows
    assert {name for name, _ in created} == {
        "usage_events", "usage_dead_letters", "usage_dead_letter_replays", "stripe_objects",
        "stripe_meter_summaries", "copy_marks",
        *(table.name for table in COPIES),
    }  # fmt: skip
    for setting in ("fsync_after_insert = 1", "fsync_part_directory = 1"):
        assert [name for name, query in created if setting not in query] == []


def test_an_old_event_that_came_later_than_others_may_was_brought_by_a_key_for_history(
    warehouse: Client,
) -> None:
    """A row that does not say it, as all that landed before the column was there."""
    accepted = datetime(2026, 6, 1, tzinfo=UTC)
    names = ["customer_id", "event_id", "event_time", "accepted_at", "loaded_at"]
    rows = [
        ["cus_old", f"{days}", accepted - timedelta(days=days), accepted, accepted] for days in (0, 35, 36)
    ]
    warehouse.insert("raw.usage_events", rows, column_names=names)
    known = warehouse.query(
        "select event_id, historical from raw.usage_events where customer_id = 'cus_old' order by event_id"
    ).result_rows
    warehouse.command("alter table raw.usage_events delete where customer_id = 'cus_old'")
    assert known == [("0", 0), ("35", 0), ("36", 1)]
