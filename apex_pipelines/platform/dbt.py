"""The dbt project as this platform runs it: its manifest and its variables.

Belongs here: what both Dagster and the command line need to know of dbt. Models live in `dbt_project/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from apex_pipelines.settings import Settings

_SOURCES = ("*.sql", "*.yml", "*.csv")


class ManifestError(RuntimeError):
    """dbt could not parse the project; the message carries what dbt said."""


def dbt_executable() -> Path:
    """The `dbt` of the environment that this process runs in, whether or not it is on the PATH."""
    return Path(sys.executable).with_name("dbt")


def manifest_path(settings: Settings) -> Path:
    return settings.dbt_project_dir / "target" / "manifest.json"


def ensure_manifest(settings: Settings) -> Path:
    """Path of the manifest, after building it when it is missing or older than the project's files.

    Raises
    ------
    ManifestError
        If dbt finds the project faulty.
    """
    manifest = manifest_path(settings)
    folders = (settings.dbt_project_dir / name for name in ("models", "macros", "seeds", "tests"))
    files = [settings.dbt_project_dir / "dbt_project.yml", settings.dbt_project_dir / "profiles.yml"]
    files += [path for folder in folders for pattern in _SOURCES for path in folder.rglob(pattern)]
    if manifest.exists() and manifest.stat().st_mtime >= max(path.stat().st_mtime for path in files):
        return manifest
    command = [
        dbt_executable(),
        "parse",
        "--quiet",
        "--project-dir",
        settings.dbt_project_dir,
    ]
    env = os.environ | {
        "DBT_PROFILES_DIR": str(settings.dbt_project_dir),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    done = subprocess.run(
        [str(part) for part in command], env=env, capture_output=True, text=True, cwd=settings.dbt_project_dir
    )
    if done.returncode != 0:
        raise ManifestError(f"dbt could not parse {settings.dbt_project_dir}:\n{done.stdout}{done.stderr}")
    return manifest


def dbt_environment(now: datetime) -> dict[str, str]:
    """What a dbt run of ours finds in its environment besides the connection: the instant of the run."""
    return {"APEX_DBT_AS_OF_INSTANT": f"{now.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"}


def dbt_variables(settings: Settings, as_of: date) -> dict[str, str | int | bool]:
    """Variables that every dbt run of ours gets; the same for all runs of a day, or dbt would parse in each.

    Parameters
    ----------
    as_of : date
        Today in UTC.
    """
    optional: dict[str, str | int | bool] = {}
    if settings.launch_date is not None:
        optional["launch_date"] = settings.launch_date.isoformat()
    return optional | {
        "as_of_date": as_of.isoformat(),
        "churn_label": settings.churn_label,
        "churn_horizon_days": settings.churn_horizon_days,
        "churn_feature_step_days": settings.churn_feature_step_days,
        # What the other mode's key fetched stays in the raw tables, and must not be taken for this one's.
        "stripe_livemode": settings.stripe_livemode,
    }


if __name__ == "__main__":
    ensure_manifest(Settings())
