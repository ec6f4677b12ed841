"""The ingest API's processes: one parent that holds nothing, and the workers that serve.

Belongs here: Granian, sockets, start-up checks. Does not belong here: requests (`app`).
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from apex_pipelines.customers.tokens import BadTokenSecret, token_secret
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings
from apex_pipelines.webhooks.signatures import BadSecret, svix_key
from ingest_api.app import IngestApp
from ingest_api.metrics import SharedCounters
from ingest_api.routing import ROUTES
from ingest_api.spool.writing import check_writable

log = get_logger(__name__)

_PORT_WAIT_SECONDS = 1.5  # workers of a killed server need a moment to notice and let go of the port
_DRAIN_SECONDS = 15
_BACKLOG = 4096  # connections that the kernel holds for a worker that has no time to take them
_CONNECTION_BUFFER_BYTES = 65_536  # about what the head of a request may have and what is read ahead
# Descriptors that are no connections: segments, logs, PostgreSQL, ClickHouse, the event loop.
_OTHER_FILES = 100
_FEWEST_CONNECTIONS = 64
# The server's own lines go where those of all libraries go; it would write them to stdout.
_SERVER_LOGGING: dict[str, Any] = {
    "loggers": {"_granian": {"handlers": [], "level": "WARNING", "propagate": True}},
}


class CannotStart(RuntimeError):
    """The API can't start; the message says why and what to do."""


def serve(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve the API until SIGTERM or SIGINT, which let requests in flight finish first. Blocks.

    Raises
    ------
    CannotStart
        If the port is taken, the spool folder can't be written, or a secret can't be used.
    """
    if workers < 1:
        raise CannotStart(f"workers must be at least 1, got {workers}")
    _check_secrets(settings)
    _check_spool(settings.spool_dir)
    _check_port(host, port)
    worker_locks = settings.spool_dir / f"workers-{port}.lock"
    # The documentation tells the address that is served, which may be another than the settings say.
    settings = settings.model_copy(update={"api_host": host, "api_port": port})
    app = IngestApp(settings, SharedCounters(workers, ROUTES), worker_locks, port, os.getpid())
    server = Server(
        target="ingest_api.app",
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        workers=workers,
        http=HTTPModes.http1,
        backlog=_BACKLOG,
        # A limit on connections: at the next one the server stops taking any until one ends.
        backpressure=_max_connections(settings.api_max_connections),
        http1_settings=HTTP1Settings(
            # From the end of an answer on, so it ends idle connections as well.
            header_read_timeout=int(settings.api_idle_seconds * 1000),
            max_buffer_size=_CONNECTION_BUFFER_BYTES,
        ),
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=0.1,
        workers_kill_timeout=_DRAIN_SECONDS,
        log_level=LogLevels.warning,
        log_dictconfig=_SERVER_LOGGING,
        process_name=None,
    )
    _warn_of_own_secret(settings)
    log.info("ingest API listening", url=f"http://{host}:{port}", workers=workers)
    server.serve(target_loader=partial(_loaded, app), wrap_loader=False)


def _loaded(app: IngestApp) -> Any:
    """The server asks for a callable; it finds the app's `__rsgi__` methods by their names."""
    return app


def _max_connections(wanted: int) -> int:
    """How many connections each worker may have: `wanted`, or what there are descriptors for.

    A server that runs out of descriptors can neither take a connection nor begin a segment, and turns round
    and round trying, so the limit stays below theirs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + _OTHER_FILES
    if soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(hard, files)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(min(wanted, limit - _OTHER_FILES), _FEWEST_CONNECTIONS)
    if most < wanted:
        log.warning("few file descriptors allowed; fewer connections too", ulimit=limit, connections=most)
    return most


def _check_secrets(settings: Settings) -> None:
    if settings.resend_webhook_secret is not None:
        try:
            svix_key(settings.resend_webhook_secret)
        except BadSecret as error:
            raise CannotStart(
                f"RESEND_WEBHOOK_SECRET: {error}; copy it from Resend's webhook page"
            ) from error
    try:
        token_secret(settings)
    except (BadTokenSecret, OSError) as error:
        raise CannotStart(str(error)) from error


def _warn_of_own_secret(settings: Settings) -> None:
    if settings.jwt_secret is None and settings.database_url is not None:
        log.warning(
            "APEX_JWT_SECRET is not set, so this host signs tokens with a secret of its own; where several "
            "hosts share this PostgreSQL, set it to the same on each, or they refuse each other's tokens",
            kept_in=str(settings.home_path),
        )


def _check_spool(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise CannotStart(f"the spool folder {folder} can't be written: {error.strerror}") from error


def _check_port(host: str, port: int) -> None:
    """Refuse a port that is taken: the workers share theirs, so that two servers would share it too."""
    deadline = time.monotonic() + _PORT_WAIT_SECONDS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise CannotStart(f"can't listen on {host}:{port}: {error.strerror}") from error
        if time.monotonic() > deadline:
            raise CannotStart(f"port {port} on {host} is in use; stop what uses it or set APEX_API_PORT")
        time.sleep(0.1)
