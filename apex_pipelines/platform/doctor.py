"""Finds what is wrong with an installation and says it in plain words, with the way out.

Belongs here: questions that can be asked from outside of a running or a broken platform. Does not belong
here: repairing anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from clickhouse_connect.driver.exceptions import ClickHouseError

from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.platform.dbt import manifest_path
from apex_pipelines.platform.supervisor import read_records
from apex_pipelines.settings import Settings

LOW_DISK_BYTES = 2_000_000_000
LARGE_BACKLOG_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and what to do when it is not well."""

    subject: str
    ok: bool
    message: str
    remedy: str | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Everything that can be found out from outside; never raises for a sick installation."""
    findings = [_clock(settings), _disk(settings), _manifest(settings), *_processes(settings)]
    findings += [_postgres(settings), _warehouse(settings), _api(settings), _spool(settings), _mail(settings)]
    return findings


def _clock(settings: Settings) -> Finding:
    try:
        now = clock_from_setting(settings.clock).now()
    except ValueError as error:
        return Finding("clock", ok=False, message=str(error), remedy="correct or unset APEX_CLOCK")
    if settings.clock != "system":
        return Finding("clock", ok=True, message=f"stands still at {now.isoformat()} (APEX_CLOCK)")
    return Finding("clock", ok=True, message=f"follows the machine, {now:%Y-%m-%d %H:%M} UTC")


def _disk(settings: Settings) -> Finding:
    folder = settings.home_path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    message = f"{free / 1e9:.1f} GB free for {settings.home_path}"
    if free < LOW_DISK_BYTES:
        return Finding("disk", ok=False, message=message, remedy="free some space or move APEX_HOME")
    return Finding("disk", ok=True, message=message)


def _manifest(settings: Settings) -> Finding:
    if manifest_path(settings).exists():
        return Finding("dbt manifest", ok=True, message="built")
    return Finding("dbt manifest", ok=False, message="missing", remedy="run `make install`")


def _processes(settings: Settings) -> Iterator[Finding]:
    records = read_records(settings.run_dir)
    if not records:
        yield Finding("processes", ok=False, message="none is running", remedy="start them with `apex up`")
    for record in records:
        if record.process() is None:
            log = f"read {record.log}" if record.log else "run `apex up` again"
            yield Finding(record.name, ok=False, message=f"process {record.pid} has ended", remedy=log)
        elif record.restarts:
            message = f"running, restarted {record.restarts} times"
            yield Finding(record.name, ok=record.restarts < 3, message=message, remedy=f"read {record.log}")


def _postgres(settings: Settings) -> Finding:
    try:
        engine = postgres.create_engine(settings, poolclass=sa.NullPool)
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    except (sa.exc.SQLAlchemyError, postgres.PostgresNotRunning) as error:
        reason = str(error).splitlines()[0]
        remedy = "start it with `apex up`, or correct APEX_DATABASE_URL"
        return Finding("PostgreSQL", ok=False, message=f"does not answer: {reason}", remedy=remedy)
    head = ScriptDirectory.from_config(postgres.alembic_config("postgresql://")).get_current_head()
    if current != head:
        message = f"answers, but its schema is at {current or 'nothing'} and not at {head}"
        return Finding("PostgreSQL", ok=False, message=message, remedy="restart `apex up`, which migrates")
    return Finding("PostgreSQL", ok=True, message=f"answers, schema {current}")


def _warehouse(settings: Settings) -> Finding:
    try:
        client = clickhouse.connect(settings, query_origin="doctor", timeout_seconds=10)
        version = client.command("select version()")
        dead = client.query("select count() from raw.usage_dead_letters_open").result_rows[0][0]
    except (ClickHouseError, OSError) as error:
        remedy = "start it with `apex up`, or correct APEX_CLICKHOUSE_URL and its password"
        return Finding("ClickHouse", ok=False, message=f"does not answer: {error}", remedy=remedy)
    if dead:
        message = f"version {version}; {dead} events could not be loaded"
        remedy = "`apex ingest dead-letters list`, then `apex ingest dead-letters replay`"
        return Finding("ClickHouse", ok=False, message=message, remedy=remedy)
    return Finding("ClickHouse", ok=True, message=f"answers, version {version}")


def _api(settings: Settings) -> Finding:
    url = f"{settings.api_url}/ready"
    try:
        answer = httpx.get(url, timeout=5)
    except httpx.HTTPError as error:
        message = f"{url} does not answer: {error}"
        return Finding("ingest API", ok=False, message=message, remedy="start it with `apex up`")
    if answer.status_code != 200:
        return Finding("ingest API", ok=False, message=f"not ready: {answer.text[:300]}", remedy=url)
    if answer.json()["status"] != "ready":
        message = f"takes events of keys that it knows only: {answer.text[:300]}"
        return Finding("ingest API", ok=False, message=message, remedy="bring PostgreSQL back")
    return Finding("ingest API", ok=True, message="ready")


def _spool(settings: Settings) -> Finding:
    waiting = sum(_size(path) for suffix in ("*.seg", "*.open") for path in settings.spool_dir.glob(suffix))
    damaged = settings.spool_dir / "damaged"
    if any(damaged.glob("*")):
        message = f"{waiting / 1e6:.1f} MB waiting; damaged pieces were kept aside in {damaged}"
        remedy = "report.ndjson there says what they are; remove what you have looked at"
        return Finding("spool", ok=True, message=message, remedy=remedy)
    if waiting > LARGE_BACKLOG_BYTES:
        message = f"{waiting / 1e6:.0f} MB wait to be loaded"
        return Finding("spool", ok=False, message=message, remedy="see whether loader and ClickHouse run")
    return Finding("spool", ok=True, message=f"{waiting / 1e6:.1f} MB waiting")


def _size(path: Path) -> int:
    """Bytes of a file; 0 when the loader has removed it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _mail(settings: Settings) -> Finding:
    try:
        with postgres.create_engine(settings, poolclass=sa.NullPool).connect() as connection:
            failed = connection.scalar(
                sa.text("select count(*) from events where event_type like 'email.%' and outcome = 'failed'")
            )
    except (sa.exc.SQLAlchemyError, postgres.PostgresNotRunning):
        return Finding("mail", ok=False, message="unknown while PostgreSQL does not answer")
    if failed:
        message = f"{failed} mails rest as failed"
        remedy = "`apex email queue --state failed`, then `apex email retry`"
        return Finding("mail", ok=False, message=message, remedy=remedy)
    return Finding("mail", ok=True, message="no mail rests as failed")
