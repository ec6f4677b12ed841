"""A simulation in a process of its own, for tests that kill it. Argument: API port."""

from __future__ import annotations

import sys
from datetime import date

from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.sandbox.simulator import Simulation, run_simulation
from apex_pipelines.settings import Settings

SMALL = Simulation(seed=7, customers=40, days=60, end_date=date(2026, 6, 1))

if __name__ == "__main__":
    settings = Settings(api_port=int(sys.argv[1]))
    run_simulation(
        settings, postgres.create_engine(settings), SMALL, clock_from_setting(settings.clock), concurrency=2
    )
