"""The example clients as programs, built as their README says; and the API that they are run against."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT_ROOT
from tests.ingest.conftest import (  # noqa: F401 - fixtures
    account,
    new_account,
    new_api,
    new_loader,
    process_environment,
)
from tests.node_packages import installed

EXAMPLES = PROJECT_ROOT / "examples"
BUILD_SECONDS = 200


def built_python() -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "usage_client.py")]


def built_typescript() -> list[str]:
    # Compiled, because Node runs TypeScript by itself only from 22.18 on; what it takes there is checked by
    # --erasableSyntaxOnly.
    modules = installed("typescript@5.9.3", "@types/node@20.19.43") / "node_modules"
    folder = _built(
        EXAMPLES / "typescript" / "usage_client.mts",
        "node", str(modules / "typescript" / "bin" / "tsc"), "--strict", "--noUncheckedIndexedAccess",
        "--erasableSyntaxOnly", "--module", "nodenext", "--target", "es2022", "--types", "node",
        "--typeRoots", str(modules / "@types"), "{source}", "--outDir", "{folder}",
    )  # fmt: skip
    return ["node", str(folder / "usage_client.mjs")]


def _swift() -> list[str]:
    _need("swiftc")
    source = EXAMPLES / "swift" / "UsageClient.swift"
    options = ("-swift-version", "6", "-parse-as-library", "{source}", "-o", "{folder}/usage-client")
    return [str(_built(source, "swiftc", *options) / "usage-client")]


def _kotlin() -> list[str]:
    _need("kotlinc", "java")
    source = EXAMPLES / "kotlin" / "UsageClient.kt"
    options = ("-Werror", "-include-runtime", "{source}", "-d", "{folder}/usage-client.jar")
    return ["java", "-jar", str(_built(source, "kotlinc", *options) / "usage-client.jar")]


_BUILDERS: dict[str, Callable[[], list[str]]] = {
    "python": built_python,
    "typescript": built_typescript,
    "swift": _swift,
    "kotlin": _kotlin,
}


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on the PATH")


def _built(source: Path, *command: str) -> Path:
    """The folder that the command made of the source; kept, since compilers take half a minute."""
    digest = hashlib.sha256(source.read_bytes() + repr(command).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"apex-tests-{os.getuid()}-{source.stem}-{digest}"
    finished = folder / "finished"
    if finished.exists() and folder.stat().st_uid == os.getuid():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    filled = [part.format(source=source, folder=folder) for part in command]
    done = subprocess.run(filled, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    finished.touch()
    return folder


@pytest.fixture(scope="session", params=list(_BUILDERS))
def client_command(request: pytest.FixtureRequest) -> list[str]:
    """What runs one of the clients; skips where its language is missing."""
    return _BUILDERS[request.param]()
