"""What the migrations of ClickHouse promise of the raw tables."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client


def test_tables_of_telemetry_and_of_stripe_state_themselves_that_inserts_are_synced(
    warehouse: Client,
) -> None:
    """A server of one's own has it off by default, and then a 2xx promises too much."""
    created = warehouse.query(
        "select name, create_table_query from system.tables "
        "where database = 'raw' and match(name, '^(usage|stripe)') and engine like '%MergeTree'"
    ).result_rows
    assert {name for name, _ in created} == {
        "usage_events", "usage_dead_letters", "usage_dead_letter_replays", "stripe_objects"
    }  # fmt: skip
    for setting in ("fsync_after_insert = 1", "fsync_part_directory = 1"):
        assert [name for name, query in created if setting not in query] == []
