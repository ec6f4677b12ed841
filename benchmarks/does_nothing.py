"""A constant answer on the server that we use, whole requests read: what no handler on it can surpass.

Usage: ``python -m benchmarks.does_nothing --port 8081``.
"""

from __future__ import annotations

import argparse
import os
import socket

from apex_pipelines.settings import Settings
from ingest_api.http_head import RequestHead
from ingest_api.responses import Answer, HttpError
from ingest_api.server import connection_limits
from ingest_api.worker import work

_ANSWER = Answer(200, b"content-type: application/json\r\n", b'{"success":true,"rejected":0}', False)


class DoesNothing:
    """An application with one answer."""

    async def open(self) -> None:
        pass

    def refusal(self, _head: RequestHead) -> HttpError | None:
        return None

    async def answer(self, _head: RequestHead, _body: bytes, _problem: HttpError | None) -> Answer:
        return _ANSWER

    def close(self) -> None:
        pass


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    settings = Settings()
    limits = connection_limits(settings)
    with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        listener.setblocking(False)
        work(DoesNothing(), listener, limits, settings.api_max_connections, os.getppid())


if __name__ == "__main__":
    main()
