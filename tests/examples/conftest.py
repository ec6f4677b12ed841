"""The example clients as programs, built as their README says; and the API that they are run against."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


def _python(_folder: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "usage_client.py")]


def _typescript(folder: Path) -> list[str]:
    # Compiled, because Node runs TypeScript by itself only from 22.18 on; what it takes there is checked by
    # --erasableSyntaxOnly.
    modules = installed("typescript@5.9.3", "@types/node@20.19.43") / "node_modules"
    _build(
        "node", str(modules / "typescript" / "bin" / "tsc"), "--strict", "--noUncheckedIndexedAccess",
        "--erasableSyntaxOnly", "--module", "nodenext", "--target", "es2022", "--types", "node",
        "--typeRoots", str(modules / "@types"), "--outDir", str(folder),
        str(EXAMPLES / "typescript" / "usage_client.mts"),
    )  # fmt: skip
    return ["node", str(folder / "usage_client.mjs")]


def _swift(folder: Path) -> list[str]:
    _need("swiftc")
    source, program = EXAMPLES / "swift" / "UsageClient.swift", folder / "usage-client"
    _build("swiftc", "-swift-version", "6", "-parse-as-library", str(source), "-o", str(program))
    return [str(program)]


def _kotlin(folder: Path) -> list[str]:
    _need("kotlinc", "java")
    source, program = EXAMPLES / "kotlin" / "UsageClient.kt", folder / "usage-client.jar"
    _build("kotlinc", "-Werror", "-include-runtime", "-d", str(program), str(source))
    return ["java", "-jar", str(program)]


_BUILDERS: dict[str, Callable[[Path], list[str]]] = {
    "python": _python,
    "typescript": _typescript,
    "swift": _swift,
    "kotlin": _kotlin,
}


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on the PATH")


def _build(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session", params=list(_BUILDERS))
def client_command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs one of the clients; skips where its language is missing."""
    return _BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
