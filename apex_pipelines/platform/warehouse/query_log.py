"""`system.query_log` as a server has it: kept over restarts, with the ids and the texts that clients sent.

Belongs here: taking over what the engine logs. Does not belong here: what is logged (`configuration`).

The embedded engine's database `system` lives in memory, it names each query itself, and it logs the text that
it was given, in which a result's way into a pipe is written. So a materialized view puts back what the client
knows and writes it to a table of ours; `system.query_log` is a view of that table.
"""

from __future__ import annotations

from apex_pipelines.platform.warehouse.configuration import QUERY_LOG_TABLE
from apex_pipelines.platform.warehouse.engine import QUERY_ID_SETTING, Connection
from apex_pipelines.platform.warehouse.native import DESCRIBING

KEPT_DAYS = 14
DATABASE = "engine_logs"

_TABLE = f"""
CREATE TABLE IF NOT EXISTS {DATABASE}.query_log AS system.{QUERY_LOG_TABLE}
ENGINE = MergeTree
PARTITION BY toYYYYMM(event_date)
ORDER BY (event_date, event_time)
TTL event_date + INTERVAL {KEPT_DAYS} DAY DELETE
"""
_KEEPER = rf"""
CREATE MATERIALIZED VIEW IF NOT EXISTS system.query_log_keeper TO {DATABASE}.query_log AS
SELECT * REPLACE (
    if(Settings['{QUERY_ID_SETTING}'] = '', query_id, Settings['{QUERY_ID_SETTING}']) AS query_id,
    if(is_initial_query AND Settings['{QUERY_ID_SETTING}'] != '',
       Settings['{QUERY_ID_SETTING}'], initial_query_id) AS initial_query_id,
    replaceRegexpOne(
        replaceRegexpOne(query, '^/\\*\\*/', ''), '\nINTO OUTFILE \'/dev/fd/[0-9]+\' TRUNCATE', ''
    ) AS query,
    mapFilter((name, _) -> name != '{QUERY_ID_SETTING}', Settings) AS Settings
)
FROM system.{QUERY_LOG_TABLE}
WHERE NOT startsWith(query, '{DESCRIBING.decode().strip()}')
"""  # noqa: S608 - names of our own
_VIEW = f"CREATE VIEW IF NOT EXISTS system.query_log AS SELECT * FROM {DATABASE}.query_log"  # noqa: S608
_COLUMNS = """
SELECT groupArray((name, type)) FROM (
    SELECT name, type FROM system.columns WHERE database = '{}' AND table = '{}' ORDER BY position
)
"""


def keep(connection: Connection) -> None:
    """Have all queries from now on logged for `KEPT_DAYS` days; to be called at each start of the engine.

    When another version of the engine logs other columns, the old table is kept beside the new one.
    """

    def run(text: str) -> str:
        return connection.query(text.encode())[0].decode().strip()

    run("SET log_queries = 0")
    run("SYSTEM FLUSH LOGS")  # makes the table that the engine writes to
    run(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    run(_TABLE)
    if run(_COLUMNS.format(DATABASE, "query_log")) != run(_COLUMNS.format("system", QUERY_LOG_TABLE)):
        kept = int(run(f"SELECT count() FROM system.tables WHERE database = '{DATABASE}'"))  # noqa: S608
        run(f"RENAME TABLE {DATABASE}.query_log TO {DATABASE}.query_log_{kept}")
        run(_TABLE)
    run(_KEEPER)
    run(_VIEW)
