"""docs/operations.md names each setting of the ingest API and its loader, with the default that holds."""

from __future__ import annotations

import re

from apex_pipelines.settings import Settings
from tests.conftest import PROJECT_ROOT

_ROW = re.compile(r"^\| `APEX_((?:API|SPOOL|LOADER|EVENT)_[A-Z_]+)` \| ([^|]+) \|", re.MULTILINE)
# Said in words there.
_UNSET = {"api_public_url": "the API's own address", "api_cors_origins": "none"}


def test_the_table_has_each_setting_with_its_default() -> None:
    table = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    written = {name.lower(): default.strip() for name, default in _ROW.findall(table)}
    settings = Settings.model_fields
    held = {
        name: _UNSET.get(name, str(field.default).removesuffix(".0"))
        for name, field in settings.items()
        if name.startswith(("api_", "spool_", "loader_", "event_"))
    }
    assert written == held
