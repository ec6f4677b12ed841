"""Running the stand-in on a folder and a port.

Belongs here: its key, its secret, its lock and its socket. Does not belong here: answering.
"""

from __future__ import annotations

import fcntl
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvicorn

from apex_pipelines.platform.clock import Clock, SystemClock
from apex_pipelines.platform.kept_secret import kept_secret
from apex_pipelines.sandbox.stripe.account import Account, Behaviour
from apex_pipelines.sandbox.stripe.faults import BreakableProtocol
from apex_pipelines.sandbox.stripe.server import Sandbox
from apex_pipelines.sandbox.stripe.store import Store


class CannotServe(Exception):
    """The folder or the port is taken; the message says which."""


@dataclass(frozen=True)
class Secrets:
    """What a client needs: the key of requests, and the secret that webhooks are signed with."""

    key: str
    webhook_secret: str


def secrets_of(folder: Path) -> Secrets:
    """The secrets of the stand-in on that folder, made at first use."""
    return Secrets(
        key=f"sk_test_{kept_secret(folder / 'key')[:32]}",
        webhook_secret=f"whsec_{kept_secret(folder / 'webhook-secret')[:32]}",
    )


def open_account(folder: Path, clock: Clock) -> Account:
    """The account that is kept in that folder."""
    account = Account(Store(folder), clock, secrets_of(folder).webhook_secret)
    kept = account.store.setting("behaviour")
    if kept is not None:
        account.behaviour = msgspec.convert(kept, Behaviour)
    return account


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until stopped.

    Raises
    ------
    CannotServe
        If another process has the folder or the port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotServe(f"another process serves {folder}; stop it, or give another folder") from None
        listener = _listen(host, port)
        account = open_account(folder, SystemClock())
        secrets = secrets_of(folder)
        application = Sandbox(account, secrets.key).application()
        config = uvicorn.Config(
            application, http=BreakableProtocol, access_log=False, log_config=None, timeout_keep_alive=75
        )
        try:
            uvicorn.Server(config).run([listener])
        finally:
            account.store.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotServe(f"{host}:{port} can't be listened on: {error.strerror or error}") from None
    return listener
