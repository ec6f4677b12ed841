"""The ingest API's processes: one parent that holds nothing, and the workers that serve.

Belongs here: start-up checks, the listening socket, keeping workers alive. Does not belong here: what a
worker does (`worker`), requests (`app`).
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from apex_pipelines.customers.tokens import BadTokenSecret, token_secret
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings
from apex_pipelines.webhooks.signatures import BadSecret, svix_key
from ingest_api.app import IngestApp
from ingest_api.http_connection import ConnectionLimits
from ingest_api.metrics import SharedCounters
from ingest_api.routing import ROUTES
from ingest_api.spool.writing import check_writable
from ingest_api.worker import work

log = get_logger(__name__)

_PORT_WAIT_SECONDS = 1.5  # workers of a killed server need a moment to notice and let go of the port
_DRAIN_SECONDS = 15
_BACKLOG = 4096  # connections that the kernel holds for a worker that has no time to take them
# A worker that dies sooner than that is started again after a pause, which grows each time.
_SHORT_LIFE_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Descriptors that are no connections: segments, logs, PostgreSQL, ClickHouse, the event loop.
_OTHER_FILES = 100
_FEWEST_CONNECTIONS = 64


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
    listeners = _listeners(host, port, workers, settings.api_unread_seconds)
    # The documentation tells the address that is served, which may be another than the settings say.
    settings = settings.model_copy(update={"api_host": host, "api_port": port})
    worker_locks = settings.spool_dir / f"workers-{port}.lock"
    app = IngestApp(settings, SharedCounters(workers, ROUTES), worker_locks)
    limits = connection_limits(settings)
    most = _max_connections(settings.api_max_connections)
    _warn_of_own_secret(settings)
    log.info("ingest API listening", url=f"http://{host}:{port}", workers=workers)
    parent = os.getpid()
    _Workers(listeners, lambda listener: work(app, listener, limits, most, parent)).run()


def connection_limits(settings: Settings) -> ConnectionLimits:
    """What one client may take, by `settings`."""
    return ConnectionLimits(
        body_size=settings.api_max_body_bytes,
        head_seconds=settings.api_idle_seconds,
        body_seconds=settings.api_body_seconds,
        uploading_size=settings.api_max_uploading_bytes,
    )


class _Workers:
    """Worker processes, one for each listener, replaced when they end, until a signal asks all to end.

    They are forks: what they need is loaded once, and they share the counters' memory. The listeners are held
    here, so that what waits at that of a killed worker waits for its successor.
    """

    def __init__(self, listeners: list[socket.socket], work: Callable[[socket.socket], None]) -> None:
        self._listeners = listeners
        self._work = work
        self._context = multiprocessing.get_context("fork")
        # By listener: the process and when it was started; None where one could not be.
        self._started: dict[int, tuple[ForkProcess, float] | None] = dict.fromkeys(range(len(listeners)))
        self._pause = _FIRST_PAUSE_SECONDS
        self._is_stopping = False

    def run(self) -> None:
        """Keep the workers running; returns when all have ended after a signal."""
        heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            for number in self._started:
                self._start(number)
            while not self._is_stopping:
                sentinels = [each[0].sentinel for each in self._started.values() if each is not None]
                wait([*sentinels, heard], None if len(sentinels) == len(self._started) else 0)
                self._replace()
            self._end()
        finally:
            signal.set_wakeup_fd(before)
            for each, handler in handlers.items():
                signal.signal(each, handler)
            os.close(heard)
            os.close(told)

    def _stop(self, _number: int, _frame: object) -> None:
        self._is_stopping = True

    def _start(self, number: int) -> None:
        process = self._context.Process(target=self._work_in_fork, args=(number,), name="ingest worker")
        # A signal that came before the worker can hear it would be lost, and the server wait in vain.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
            self._started[number] = process, time.monotonic()
        except OSError as error:
            log.error("a worker can't be started; it is tried again", error=str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _work_in_fork(self, number: int) -> None:
        signal.set_wakeup_fd(-1)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        own = self._listeners[number]
        for listener in self._listeners:
            if listener is not own:
                listener.close()
        try:
            self._work(own)
        except Exception:
            log.exception("a worker has failed")
            sys.exit(1)

    def _replace(self) -> None:
        for number, started in self._started.items():
            lived = 0.0
            if started is not None:
                process, began = started
                if process.is_alive():
                    continue
                lived = time.monotonic() - began
                self._started[number] = None
                if not self._is_stopping:
                    log.error("a worker ended by itself; another is started", exit_code=process.exitcode)
            if self._is_stopping:
                continue
            # One that can't even start must not keep the machine busy with trying.
            is_short = lived < _SHORT_LIFE_SECONDS
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS) if is_short else _FIRST_PAUSE_SECONDS
            time.sleep(self._pause)
            self._start(number)

    def _end(self) -> None:
        # First, so that clients and balancers are refused at once and turn to another server.
        for listener in self._listeners:
            listener.close()
        alive = [started[0] for started in self._started.values() if started is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + _DRAIN_SECONDS
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.error("a worker does not end; it is killed", pid=process.pid)
                process.kill()
                process.join()


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


def _listeners(host: str, port: int, workers: int, unread_seconds: float) -> list[socket.socket]:
    """A listening socket for each worker, among which the kernel spreads connections evenly.

    Raises
    ------
    CannotStart
        If the address can't be had.
    """
    first = _first_listener(host, port)
    if workers == 1 or sys.platform != "linux":
        listeners = [first] * workers  # elsewhere the last socket would get all connections
    else:
        # The first one showed that nobody else has the port: sockets that share it would share it with him.
        first.close()
        listeners = [
            socket.create_server((host, port), family=first.family, backlog=_BACKLOG, reuse_port=True)
            for _ in range(workers)
        ]
    for listener in listeners:
        listener.setblocking(False)
        if sys.platform == "linux":
            # Cuts off clients that let answers wait unread; connections inherit it. Elsewhere there is none.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_seconds * 1000))
    return listeners


def _first_listener(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + _PORT_WAIT_SECONDS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        try:
            return socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CannotStart(f"can't listen on {host}:{port}: {error.strerror}") from error
        if time.monotonic() > deadline:
            raise CannotStart(f"port {port} on {host} is in use; stop what uses it or set APEX_API_PORT")
        time.sleep(0.1)
