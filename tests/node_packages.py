"""Packages for Node that tests need, installed once a machine; where they can't be had, tests are skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# As long as a machine without a network takes to find out.
INSTALL_SECONDS = 60


def installed(*packages: str) -> Path:
    """A folder whose `node_modules` has the packages, each named with its version; else skips the test."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    name = re.sub(r"[^a-z0-9.+]+", "-", f"apex-tests-{os.getuid()}-{'+'.join(packages)}")
    folder = Path(tempfile.gettempdir()) / name
    if (folder / "node_modules").is_dir() and folder.stat().st_uid == os.getuid():
        return folder
    # Beside it first: another worker that installs at the same time finds all of it or nothing.
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as staging:
        (Path(staging) / "package.json").write_text("{}")
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
        try:
            done = subprocess.run(
                [*command, *packages], cwd=staging, capture_output=True, text=True,
                timeout=INSTALL_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not install {packages} within {INSTALL_SECONDS} s; is there a network?")
        if done.returncode != 0:
            pytest.skip(f"npm could not install {packages}: {done.stderr.strip()[-500:]}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(staging, f"{staging}-whole", symlinks=True)
        try:
            Path(f"{staging}-whole").rename(folder)
        except OSError:  # the other worker was first
            shutil.rmtree(f"{staging}-whole")
    return folder
