"""The same real servers as the tests have, but with the memory that an operator's has by default."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_pipelines.settings import Settings
from tests.conftest import (  # noqa: F401 - fixtures are found by name
    _postgres,
    _warehouse,
    clock,
    engine,
    free_port,
    settings,
    warehouse,
)
from tests.ingest.conftest import (  # noqa: F401
    account,
    models,
    new_account,
    new_api,
    new_loader,
    new_warehouse,
    process_environment,
)


@pytest.fixture(scope="session")
def _server_settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="apex-bench-", ignore_cleanup_errors=True) as folder:
        yield Settings(home=Path(folder), warehouse_port=free_port())
