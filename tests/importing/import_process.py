"""An import in a process of its own, for tests that kill it. Arguments: file, API port, `historical`."""

from __future__ import annotations

import sys

from apex_pipelines.importing.engine import run_import
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings

if __name__ == "__main__":
    settings = Settings(api_port=int(sys.argv[2]))
    run_import(
        settings,
        sys.argv[1],
        historical="historical" in sys.argv[3:],
        clock=clock_from_setting(settings.clock),
        concurrency=2,
    )
