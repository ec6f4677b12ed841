"""The offline Stripe as tests use it: a real process over HTTP, and its controls.

Belongs here: starting it and steering it. Does not belong here: what it must do (`tests/stripe/sandbox_*`).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from stripe import StripeClient

from apex_pipelines.sandbox.stripe.serving import secrets_of
from apex_pipelines.settings import Settings, child_environment
from apex_pipelines.stripe.client import API_VERSION
from tests.conftest import free_port, stop, wait_until_up


@dataclass
class Sandbox:
    """A running stand-in; `url` is the address for `stripe_api_base`."""

    folder: Path
    settings: Settings
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return secrets_of(self.folder).key

    @property
    def webhook_secret(self) -> str:
        return secrets_of(self.folder).webhook_secret

    def start(self) -> None:
        """Start the process, on the state that the last one left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "sandbox.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "apex_pipelines.sandbox.stripe", "--host", "127.0.0.1",
                 "--port", str(self.port), "--folder", str(self.folder)],
                env=child_environment(self.settings), stdout=log, stderr=log,
            )  # fmt: skip
        wait_until_up(f"{self.url}/_sandbox/ping", self.process)

    def kill(self) -> None:
        """SIGKILL: nothing is said goodbye to."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)

    def client(self, *, retries: int = 0, **more: Any) -> StripeClient:
        """Stripe's own client, pointed here and else as it is."""
        return StripeClient(
            self.key,
            stripe_version=API_VERSION,
            base_addresses={"api": self.url, "meter_events": self.url},
            max_network_retries=retries,
            **more,
        )

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call an address under `/_sandbox/`; the answer's JSON."""
        response = httpx.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return response.json()

    def clock(self, now: datetime | None) -> None:
        """Fix the account's time or move it forward, and do what becomes due; None: the machine's time."""
        self.control("POST", "clock", {"now": None if now is None else int(now.timestamp())})

    def reset(self) -> None:
        """Forget everything that was asked of it."""
        self.control("DELETE", "state")

    def fault(self, path: str = "/v[12]/", **fault: Any) -> None:
        """Plan a failure; see `apex_pipelines.sandbox.stripe.faults.Fault`."""
        self.control("POST", "faults", {"path": path, **fault})

    def faults(self) -> list[dict[str, Any]]:
        """What is planned, and how often it happened."""
        found: list[dict[str, Any]] = self.control("GET", "faults")
        return found

    def no_faults(self) -> None:
        self.control("DELETE", "faults")

    def behave(self, **behaviour: Any) -> None:
        """Change the account's `Behaviour`."""
        self.control("POST", "behaviour", behaviour)

    def handled(self, route: str | None = None) -> Any:
        """How often each kind of write was done, or that one, such as `POST /v1/customers`."""
        counts = self.control("GET", "handled")
        return counts if route is None else counts.get(route, 0)

    def meter_events(self) -> list[dict[str, Any]]:
        """Every accepted meter event and its state: accepted, counted, rejected, cancelled."""
        found: list[dict[str, Any]] = self.control("GET", "meter_events")
        return found

    def hold_webhooks(self, held: bool = True) -> None:
        """Keep webhooks back, or let them go."""
        self.control("POST", "webhooks", {"held": held})

    def deliveries(self) -> list[dict[str, Any]]:
        """Every webhook that was to be sent, oldest first, with its state and its attempts."""
        found: list[dict[str, Any]] = self.control("GET", "webhooks")["deliveries"]
        return found

    def deliver(self, events: list[str] | None = None, **how: Any) -> list[int]:
        """Send events now, all from the oldest on when None; the statuses that were answered.

        `how` is of `reverse`, `times`, `signature` (`wrong`) and `age_seconds`.
        """
        statuses: list[int] = self.control("POST", "deliver", {"events": events, **how})
        return statuses

    def forget_webhooks(self, events: list[str] | None = None) -> None:
        """Never deliver these, or all that wait."""
        self.control("POST", "forget", {"events": events})

    def spoil_card(self, payment_method: str, decline_code: str | None) -> None:
        """Let a stored card be declined with this code from now on; None: it is good again."""
        self.control("POST", "payment_methods", {"id": payment_method, "decline_code": decline_code})

    def seed(self, objects: Iterable[Mapping[str, Any]]) -> int:
        """Keep objects as they are, without events; returns how many."""
        lines = "\n".join(json.dumps(body) for body in objects)
        response = httpx.post(f"{self.url}/_sandbox/seed", content=lines, timeout=300)
        assert response.status_code == 200, response.text
        return int(response.json()["kept"])


@contextlib.contextmanager
def running_sandbox(folder: Path, settings: Settings) -> Iterator[Sandbox]:
    """A stand-in that is stopped afterwards."""
    sandbox = Sandbox(folder, settings)
    sandbox.start()
    try:
        yield sandbox
    finally:
        sandbox.stop()


@pytest.fixture(scope="session")
def running_stripe_sandbox(
    _server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path_factory.mktemp("stripe-sandbox"), _server_settings) as sandbox:
        yield sandbox


@pytest.fixture
def stripe_sandbox(settings: Settings, running_stripe_sandbox: Sandbox) -> Sandbox:
    """An empty offline Stripe at the machine's time, which a test may kill; `settings` points at it."""
    sandbox = running_stripe_sandbox
    if sandbox.process is None or sandbox.process.poll() is not None:
        sandbox.start()
    sandbox.reset()
    settings.stripe_api_base = sandbox.url
    settings.stripe_secret_key = sandbox.key
    settings.stripe_webhook_secret = sandbox.webhook_secret
    settings.stripe_requests_per_second = 1_000
    return sandbox
