"""The warehouse's process: lock, socket, engine, threads, signals, in order, and back.

Belongs here: starting and stopping. Does not belong here: what is served.
"""

from __future__ import annotations

import errno
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from apex_pipelines.platform.clickhouse import reader_password, warehouse_password
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.platform.warehouse import query_log
from apex_pipelines.platform.warehouse.access import User
from apex_pipelines.platform.warehouse.app import Limits, WarehouseApp
from apex_pipelines.platform.warehouse.configuration import memory_bytes
from apex_pipelines.platform.warehouse.engine import Engine
from apex_pipelines.platform.warehouse.http1 import BadRequest, ClientGone, HttpConnection
from apex_pipelines.platform.warehouse.lock import FolderLock
from apex_pipelines.settings import Settings

log = get_logger(__name__)
# What cancelled queries get to end when the process stops.
CANCEL_SECONDS = 5
MAX_CONNECTIONS = 1024
WANTED_FILES = 65_536
_SWEEP_SECONDS = 1.0


class PortInUse(RuntimeError):
    """The address can't be listened on."""


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve the data folder over ClickHouse's HTTP interface until SIGTERM or SIGINT.

    Raises
    ------
    WarehouseLocked
        At once, when another process holds the data folder.
    PortInUse
        At once, when the address is taken or not this machine's.
    OSError
        At once, when the data folder can't be written.
    """
    with FolderLock(settings.warehouse_dir), _listen(host, port) as listener, _stop_signals() as stopped:
        # A name of a file that is no whole path is looked up here, as in a server's folder of this name.
        files = settings.home_path / "user_files"
        files.mkdir(exist_ok=True)
        os.chdir(files)
        engine = Engine(settings)
        with engine.connected() as connection:
            query_log.keep(connection)
        limits = Limits(settings.warehouse_max_body_bytes, settings.warehouse_min_free_bytes)
        app = WarehouseApp(engine, users(settings), limits, settings.warehouse_dir, settings.home_path)
        log.info("warehouse ready", url=f"http://{host}:{listener.getsockname()[1]}", version=engine.version)
        connections = _Connections(app, _max_connections())
        try:
            _accept(listener, connections, app, stopped)
        finally:
            log.info("warehouse stopping")
            listener.close()
            app.refuse_new()
            connections.stop()
            if not _end(app, connections, settings.warehouse_stop_seconds):
                # A thread inside the engine can't be ended from outside; nothing acknowledged depends on it.
                log.error("a query did not react to being cancelled; leaving without it")
                os._exit(1)
        engine.close()
    log.info("warehouse stopped", folder=str(settings.warehouse_dir))


def _end(app: WarehouseApp, connections: _Connections, seconds: float) -> bool:
    """Let what runs end, then cancel it; whether nothing is left."""
    if not app.idle_within(seconds):
        connections.hang_up()
        if not app.cancel_all(CANCEL_SECONDS):
            return False
    if not connections.join(CANCEL_SECONDS):
        return False
    app.close()
    return True


def _max_connections() -> int:
    """How many connections the process has descriptors for, which it takes as many of as it may.

    A query takes a pipe, and each of the engine's threads three descriptors.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(min(MAX_CONNECTIONS, limit // 16), 16)
    if most < MAX_CONNECTIONS:
        log.warning("few file descriptors allowed; fewer connections too", ulimit=limit, connections=most)
    return most


def users(settings: Settings) -> list[User]:
    """The operator `default`, and `reader`, who can only read."""
    memory = int(memory_bytes(settings) * settings.warehouse_query_memory_share)
    return [
        User(
            "default",
            warehouse_password(settings),
            ceilings={"max_memory_usage": memory, "max_execution_time": settings.warehouse_query_seconds},
        ),
        User(
            "reader",
            reader_password(settings),
            read_only=True,
            ceilings={
                "max_memory_usage": memory // 2,
                "max_execution_time": settings.warehouse_reader_seconds,
                # Memory that a thread takes without being counted.
                "max_untracked_memory": 4 << 20,
                # Else the rows of an external table could call functions. 0 allows no other value.
                "input_format_values_interpret_expressions": 0,
                "input_format_values_deduce_templates_of_expressions": 0,
            },
        ),
    ]


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
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"can't listen on {host}:{port}: {error.strerror}; stop what uses it, or choose another --port"
        ) from error
    return listener


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """A socket that becomes readable when the process is asked to stop."""
    read_end, write_end = socket.socketpair()
    write_end.setblocking(False)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        read_end.close()
        write_end.close()


def _accept(
    listener: socket.socket, connections: _Connections, app: WarehouseApp, stopped: socket.socket
) -> None:
    """Hand connections to their threads until asked to stop."""
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stopped, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(_SWEEP_SECONDS)]
            if stopped in ready:
                return
            if listener in ready:
                try:
                    raw = listener.accept()[0]
                except OSError as error:
                    # Gone again already; or out of descriptors, which takes a moment to change.
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        time.sleep(0.1)
                    continue
                connections.add(raw)
            else:
                app.sessions.sweep()


class _Connections:
    """All open connections, a thread each."""

    def __init__(self, app: WarehouseApp, most: int) -> None:
        self._app = app
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[HttpConnection, threading.Thread] = {}
        self._stopping = False

    def add(self, raw: socket.socket) -> None:
        """Serve an accepted socket; close it when there are too many."""
        # Else a small answer waits for the client's delayed acknowledgement.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = HttpConnection(raw)
        thread = threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True)
        with self._lock:
            if len(self._open) >= self._most:
                log.warning("too many connections", most=self._most)
                raw.close()
                return
            try:
                thread.start()
            except RuntimeError as error:
                log.warning("no thread for a connection", error=str(error))
                raw.close()
                return
            self._open[connection] = thread

    def stop(self) -> None:
        """No further requests; connections on which none is being answered are closed."""
        with self._lock:
            self._stopping = True
            for connection in self._open:
                if not connection.serving:
                    connection.hang_up()

    def hang_up(self) -> None:
        """Wait for no client any longer."""
        with self._lock:
            for connection in self._open:
                connection.hang_up()

    def join(self, seconds: float) -> bool:
        """Wait for answers that are still on their way; False when one takes longer."""
        deadline = time.monotonic() + seconds
        with self._lock:
            threads = list(self._open.values())
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in threads)

    def _serve(self, connection: HttpConnection) -> None:
        try:
            while self._serve_one(connection):
                pass
        except ClientGone:
            pass
        except BadRequest as error:
            with suppress(ClientGone):
                connection.refuse(error)
        except Exception:
            # A defect of ours costs this connection, not the others.
            log.exception("a request failed in an unforeseen way")
            with suppress(ClientGone):
                connection.refuse(BadRequest(500, "internal error; the warehouse's log has it"))
        finally:
            with self._lock:
                self._open.pop(connection, None)
            connection.close()

    def _serve_one(self, connection: HttpConnection) -> bool:
        """Answer the next request; whether another may come."""
        head = connection.next_head()
        with self._lock:
            if head is None or self._stopping:
                return False
            connection.serving = True
        self._app.handle(connection, head)
        with self._lock:
            connection.serving = False
            return connection.finish() and not self._stopping
