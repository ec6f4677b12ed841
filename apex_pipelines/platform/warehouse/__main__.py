"""Process entry: `python -m apex_pipelines.platform.warehouse --host 127.0.0.1 --port 8123`."""

from __future__ import annotations

import argparse
import sys

from apex_pipelines.platform.logging import configure_logging
from apex_pipelines.platform.warehouse import PortInUse, WarehouseLocked, serve
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.settings import Settings


def main() -> int:
    settings = Settings()
    parser = argparse.ArgumentParser(
        prog="warehouse", description="Serve the data folder as ClickHouse over HTTP."
    )
    parser.add_argument("--host", default=settings.warehouse_host)
    parser.add_argument("--port", type=int, default=settings.warehouse_port)
    arguments = parser.parse_args()
    configure_logging(settings.log_level, settings.log_format)
    try:
        serve(settings, arguments.host, arguments.port)
    except (PortInUse, WarehouseLocked, ValueError, OSError, QueryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
