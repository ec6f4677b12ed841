"""`python -m ingest_api`: serve the ingest API."""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from apex_pipelines.platform.logging import capture_library_logs, configure_logging
from apex_pipelines.settings import Settings, settings_problems
from ingest_api.server import CannotStart, serve


def main() -> int:
    """Serve until stopped; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"error: settings are wrong: {settings_problems(error)}", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(prog="python -m ingest_api", description="Serve the ingest API.")
    parser.add_argument("--host", default=settings.api_host)
    parser.add_argument("--port", type=int, default=settings.api_port)
    parser.add_argument("--workers", type=int, default=settings.api_workers)
    arguments = parser.parse_args()
    configure_logging(settings.log_level, settings.log_format)
    capture_library_logs(settings.log_format)
    try:
        serve(settings, arguments.host, arguments.port, arguments.workers)
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
