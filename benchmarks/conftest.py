"""The same real servers as the tests have."""

from tests.conftest import (  # noqa: F401 - fixtures are found by name
    _postgres,
    _server_settings,
    _warehouse,
    clock,
    engine,
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
