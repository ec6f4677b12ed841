"""The embedded PostgreSQL after a crash of the machine: a pid file that means somebody else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa

from apex_pipelines.platform import postgres
from apex_pipelines.settings import Settings


def test_a_pid_file_left_by_a_power_cut_neither_blocks_the_start_nor_harms_the_stranger() -> None:
    # Outside of pytest's folder, which the server's user may not enter when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="apex-tests-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder))
        postgres.start_embedded(settings)
        postgres.stop_embedded(settings)
        stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        try:
            for left in (f"{stranger.pid}\n{settings.postgres_dir}\n1\n\n\n\n1 1\nready\n", "", "1234"):
                for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                    (settings.postgres_dir / name).write_text(left)
                postgres.start_embedded(settings)
                with postgres.create_engine(settings, poolclass=sa.NullPool).connect() as connection:
                    assert connection.scalar(sa.text("select 1")) == 1
                postgres.stop_embedded(settings)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
            postgres.stop_embedded(settings)
