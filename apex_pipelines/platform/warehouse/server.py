"""The warehouse's process: lock, socket, engine, signals, in order, and back.

Belongs here: starting and stopping. Does not belong here: what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
import uvloop

from apex_pipelines.platform.clickhouse import warehouse_password
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.platform.warehouse.app import WarehouseApp
from apex_pipelines.platform.warehouse.engine import Engine
from apex_pipelines.platform.warehouse.lock import FolderLock
from apex_pipelines.settings import Settings

log = get_logger(__name__)
# Running queries get this long to end when the process is told to stop; then they are cancelled.
STOP_SECONDS = 15
CANCEL_SECONDS = 5


class PortInUse(RuntimeError):
    """The address can't be listened on."""


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process by the signal instead of 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve the data folder over ClickHouse's HTTP interface until SIGTERM or SIGINT.

    Raises
    ------
    WarehouseLocked
        At once, when another process holds the data folder.
    PortInUse
        At once, when the address is taken or not this machine's.
    """
    with FolderLock(settings.warehouse_dir), _listen(host, port) as listener:
        engine = Engine(settings)
        passwords = {"default": warehouse_password(settings)}
        app = WarehouseApp(engine, passwords, settings.warehouse_max_body_bytes, settings.home_path)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ended = runner.run(_serve(app, listener, engine))
        if not ended:
            # A thread inside the engine can't be ended from outside; nothing acknowledged depends on it.
            log.error("a query did not react to being cancelled; leaving without it")
            os._exit(0)
        engine.close()
    log.info("warehouse stopped", folder=str(settings.warehouse_dir))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortInUse(
            f"can't listen on {host}:{port}: {error.strerror}; choose another with --host"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it; else a small answer waits for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"can't listen on {host}:{port}: {error.strerror}; stop what uses it, or choose another --port"
        ) from error
    return listener


async def _serve(app: WarehouseApp, listener: socket.socket, engine: Engine) -> bool:
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = _Server(config)

    def stop() -> None:
        log.info("warehouse stopping")
        server.should_exit = True

    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
    host, port = listener.getsockname()[:2]
    log.info("warehouse ready", url=f"http://{host}:{port}", version=engine.version)
    await server.serve(sockets=[listener])
    return await app.close(CANCEL_SECONDS)
