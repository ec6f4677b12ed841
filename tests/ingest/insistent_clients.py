"""Clients that send as SDKs and providers do: again, under the same id, until it is acknowledged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from tests.ingest.conftest import Account, event
from tests.ingest.webhook_bodies import stripe_event, stripe_headers

QUANTITY = 3  # of each event


@dataclass
class Exchange:
    """Ids that were sent, and those of them that were acknowledged."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)


@dataclass
class InsistentClients:
    """Four SDKs, of which one sends batches; with `hooks` a provider of webhooks as well.

    Attributes
    ----------
    name : str
        Starts every id.
    padding : int
        Characters of metadata of each event.
    duplicates : int
        Events of batches that the API knew already.
    refusals : int
        Requests that were answered with 503.
    """

    url: str
    account: Account
    name: str = "client"
    pause: float = 0.005  # seconds between two requests of one
    with_hooks: bool = False
    padding: int = 0
    usage: Exchange = field(default_factory=Exchange)
    hooks: Exchange = field(default_factory=Exchange)
    duplicates: int = 0
    refusals: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _failures: list[Exception] = field(default_factory=list)

    def are_heard(self) -> bool:
        """Whether something of each kind was acknowledged."""
        return bool(self.usage.acknowledged and (self.hooks.acknowledged or not self.with_hooks))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """They send meanwhile; what they found wrong comes out at the end."""
        shapes = [1, 1, 1, 25]
        senders = [self._sdk(f"{self.name}-{number}", size) for number, size in enumerate(shapes)]
        if self.with_hooks:
            senders.append(self._provider())
        threads = [threading.Thread(target=self._run, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(20)
        assert self._failures == []

    def _run(self, send_next: Callable[[httpx.Client], None]) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=5) as http:
                while not self._stop.is_set():
                    send_next(http)
                    time.sleep(self.pause)
        except Exception as error:  # noqa: BLE001 - handed to the test at the end
            self._failures.append(error)

    def _sdk(self, name: str, batch_size: int) -> Callable[[httpx.Client], None]:
        number = 0

        def send_next(http: httpx.Client) -> None:
            nonlocal number
            ids = [f"{name}-{number + index}" for index in range(batch_size)]
            number += batch_size
            self._insist(self.usage, ids, lambda: self._send(http, ids))

        return send_next

    def _provider(self) -> Callable[[httpx.Client], None]:
        number = 0

        def send_next(http: httpx.Client) -> None:
            nonlocal number
            name = f"evt_{self.name}_{number}"
            number += 1
            body = stripe_event(name)
            headers = stripe_headers(body)
            self._insist(
                self.hooks, [name], lambda: http.post("/webhooks/stripe", content=body, headers=headers)
            )

        return send_next

    def _insist(self, exchange: Exchange, ids: list[str], send: Callable[[], httpx.Response]) -> None:
        exchange.sent.update(ids)
        while not self._stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                answer = send()
                if answer.status_code == 200:
                    exchange.acknowledged.update(ids)
                    return
                assert answer.status_code == 503, answer.text
                self.refusals += 1
            self._stop.wait(0.05)

    def _send(self, http: httpx.Client, ids: list[str]) -> httpx.Response:
        headers = self.account.bearer
        metadata = {f"pad{part}": "x" * 1_000 for part in range(self.padding // 1_000)}
        events = [event(event_id=name, quantity=QUANTITY, metadata=metadata) for name in ids]
        if len(ids) == 1:
            return http.post("/api/usage/track", json=events[0], headers=headers)
        answer = http.post("/api/usage/batch", json=events, headers=headers)
        if answer.status_code == 200:
            assert answer.json()["rejected"] == 0
            self.duplicates += answer.json()["duplicates"]
        return answer
