"""What the engine is told at its start: memory, durability, logs, its one user, the settings of connections.

Belongs here: configuration as ClickHouse reads it. Does not belong here: using the engine (`engine`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import psutil

from apex_pipelines.settings import Settings

# What every connection starts with; a request can say otherwise.
CONNECTION_SETTINGS: Mapping[str, str] = {
    "async_insert": "0",  # acknowledge only what is on disk
    # As on a server; the embedded engine has them the other way round.
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    # An insert becomes one part of a million rows, or of this size when its rows are wide: without a limit in
    # bytes, a million rows of a kilobyte would be held in memory at once.
    "max_insert_block_size_bytes": "134217728",
    "min_insert_block_size_bytes": "134217728",
    # On few cores this costs several times the memory and gains nothing.
    "output_format_parallel_formatting": "0",
    # A Parquet file is written a row group at a time, which is held until it is whole; as the engine has
    # them, rows of a kilobyte need 1.6 GB.
    "output_format_parquet_row_group_size": "131072",
    "output_format_parquet_row_group_size_bytes": "33554432",
    "output_format_parquet_parallel_encoding": "0",
}
# What the engine logs queries to. Its database `system` is gone with the process, so this holds nothing:
# `query_log` takes what is written to it.
QUERY_LOG_TABLE = "query_log_engine"
# Below this the engine can't do its own housekeeping.
MIN_MEMORY_BYTES = 1_000_000_000

_CONFIG = """<clickhouse>
  <!-- Written at each start; edits are lost. -->
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <mark_cache_size>{cache}</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>4</background_schedule_pool_size>
  <!-- Who asks right after a start must find every table, not only those that are loaded by then. -->
  <async_load_databases>false</async_load_databases>
  <users_config>{users}</users_config>
  <merge_tree>
    <!-- An acknowledged insert is on disk: the part's files, and the folder's entry for it. -->
    <fsync_after_insert>1</fsync_after_insert>
    <fsync_part_directory>1</fsync_part_directory>
  </merge_tree>
  <!-- BACKUP and RESTORE write to and read from folders below this one. -->
  <backups><allowed_path>{backups}/</allowed_path></backups>
  <query_log>
    <database>system</database>
    <table>{query_log}</table>
    <engine>ENGINE = Null</engine>
    <flush_interval_milliseconds>1000</flush_interval_milliseconds>
  </query_log>
</clickhouse>
"""
# The front checks passwords. Inside there is one user, whom dictionaries that read this server's own tables
# name with whatever password their definition carries, and who may look at users, roles and grants.
_USERS = """<clickhouse>
  <!-- Written at each start; edits are lost. -->
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <no_password/>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
      <named_collection_control>1</named_collection_control>
    </default>
  </users>
</clickhouse>
"""


def memory_bytes(settings: Settings) -> int:
    """What all queries and caches of the engine may hold together."""
    if settings.warehouse_max_memory_bytes:
        return settings.warehouse_max_memory_bytes
    share = int(machine_memory_bytes() * settings.warehouse_memory_share)
    return max(share, MIN_MEMORY_BYTES)


def machine_memory_bytes() -> int:
    """Memory of the machine, or of the control group (container) that this process lives in."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total


def write(settings: Settings) -> Path:
    """Write the configuration below the data folder; returns the file to start the engine with.

    Raises
    ------
    ValueError
        When the data folder's name can't be handed to the engine.
    """
    users = settings.home_path / "warehouse.users.xml"
    config = settings.home_path / "warehouse.xml"
    for path in (settings.warehouse_dir, config):
        if set(str(path)) & set("?&%#+;<>"):
            raise ValueError(f"the warehouse can't live in {str(path)!r}: choose a folder without ?&%#+;<>")
    memory = memory_bytes(settings)
    users.write_text(_USERS)
    config.write_text(
        _CONFIG.format(
            memory=memory,
            cache=memory // 8,
            users=users,
            backups=settings.backup_dir,
            query_log=QUERY_LOG_TABLE,
        )
    )
    return config
