"""Process entry: `python -m apex_pipelines.sandbox.stripe --host 127.0.0.1 --port 8090 --folder FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apex_pipelines.platform.logging import configure_logging
from apex_pipelines.sandbox.stripe.serving import CannotServe, serve
from apex_pipelines.settings import Settings


def main() -> int:
    settings = Settings()
    parser = argparse.ArgumentParser(prog="stripe-sandbox", description="Serve the offline Stripe.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=settings.stripe_sandbox_port)
    parser.add_argument("--folder", type=Path, default=settings.home_path / "stripe-sandbox")
    arguments = parser.parse_args()
    configure_logging(settings.log_level, settings.log_format)
    try:
        serve(arguments.folder, arguments.host, arguments.port)
    except CannotServe as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
