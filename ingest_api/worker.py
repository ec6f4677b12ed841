"""One worker process: takes connections from its listener, serves them, drains and ends.

Belongs here: the event loop, accepting, signals of one worker. Does not belong here: starting workers
(`server`), what happens on a connection (`http_connection`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket

import uvloop

from apex_pipelines.platform.logging import get_logger
from ingest_api.http_connection import Application, ConnectionLimits, Connections, HttpConnection

log = get_logger(__name__)

_ORPHAN_CHECK_SECONDS = 0.25
_DRAIN_SECONDS = 12.0  # less than the server waits before it kills
_ACCEPTED_AT_ONCE = 64
_NO_DESCRIPTORS_SECONDS = 0.5
_COLLECTED_OBJECTS = 10_000


def work(
    app: Application, listener: socket.socket, limits: ConnectionLimits, most_connections: int, parent: int
) -> None:
    """Serve connections of `listener` until SIGTERM or SIGINT, or until the server `parent` is gone."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener, limits, most_connections, parent))


async def _serve(
    app: Application, listener: socket.socket, limits: ConnectionLimits, most_connections: int, parent: int
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await app.open()
    # What is there now stays, so the collector need not look at it again; and requests leave next to no
    # cycles for it to find.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS, 10, 10)
    connections = Connections(app, limits, loop)
    door = Door(listener, connections, most_connections)
    while not stopped.is_set():
        if os.getppid() != parent:
            log.warning("the server process is gone; this worker drains and ends")
            break
        try:
            await asyncio.wait_for(stopped.wait(), _ORPHAN_CHECK_SECONDS)
        except TimeoutError:
            continue
    door.close()
    await connections.drain(_DRAIN_SECONDS)
    app.close()


class Door:
    """Lets connections in as long as there are fewer than `most`; the kernel holds the others."""

    def __init__(self, listener: socket.socket, connections: Connections, most: int) -> None:
        self._listener = listener
        self._connections = connections
        self._most = most
        self._loop = connections.loop
        self._entering: set[asyncio.Task[object]] = set()
        self._is_open = False
        self._is_shut = False
        connections.on_closed = self._open
        self._open()

    def close(self) -> None:
        """Let nobody in any more, and let go of the socket."""
        self._is_shut = True
        self._pause()
        self._listener.close()

    def _open(self) -> None:
        if not self._is_open and not self._is_shut:
            self._is_open = True
            self._loop.add_reader(self._listener, self._accept)

    def _pause(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._connections.open) + len(self._entering) >= self._most:
                self._pause()  # until one is closed
                return
            try:
                wire, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # nobody waits any more
            except OSError as error:
                log.error("a connection can't be taken", error=str(error))
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                    self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._open)
                return
            wire.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(self._enter(wire))
            self._entering.add(task)
            task.add_done_callback(self._entered)

    def _entered(self, task: asyncio.Task[object]) -> None:
        self._entering.discard(task)
        self._open()  # for a moment it counted as both, entering and open

    async def _enter(self, wire: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: HttpConnection(self._connections), wire)
        except OSError:
            wire.close()  # it has gone meanwhile
