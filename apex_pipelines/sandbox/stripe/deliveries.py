"""Sending events to webhook endpoints: at least once, again while the answer isn't 2xx.

Belongs here: the queue and its attempts. Does not belong here: which events there are.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time

import httpx
import msgspec

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.store import Object
from apex_pipelines.sandbox.stripe.webhooks import signature

_GIVEN_UP_SECONDS = 3 * 86_400
_IDLE_SECONDS = 0.05
_AT_ONCE = 20
_TIMEOUT_SECONDS = 20.0


class Deliveries:
    """The queue of an account; `held` keeps everything back."""

    def __init__(self, account: Account) -> None:
        self.held = bool(account.store.setting("webhooks_held"))
        self._account = account
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS)

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            waiting = [] if self.held else self._waiting()
            await asyncio.gather(*(self._attempt(row) for row in waiting))
            if not waiting:
                await asyncio.sleep(_IDLE_SECONDS)

    async def close(self) -> None:
        await self._client.aclose()

    def hold(self, held: bool) -> None:
        """Keep everything back, or let it go, in the order in which it happened."""
        self.held = held
        self._account.store.set_setting("webhooks_held", held)

    async def send(
        self, event: Object, endpoint: Object, *, secret: str | None = None, at: int | None = None
    ) -> int:
        """Send an event once; the status that was answered, 0 when nothing was.

        Parameters
        ----------
        secret : str
            What to sign with when it is not the right one.
        at : int
            Time of the signature, seconds since 1970; the account's time when None.
        """
        body = msgspec.json.encode(_shown(event))
        instant = self._account.account_time() if at is None else at
        signed = signature(secret or self._account.webhook_secret, body, instant)
        headers = {"Stripe-Signature": signed, "Content-Type": "application/json; charset=utf-8"}
        try:
            response = await self._client.post(endpoint["url"], content=body, headers=headers)
        except httpx.HTTPError:
            return 0
        return response.status_code

    def event(self, event_id: str) -> Object | None:
        """An event of either kind."""
        store = self._account.store
        return store.get("event", event_id) or store.get("v2.core.event", event_id)

    def _waiting(self) -> list[sqlite3.Row]:
        return self._account.store.connection.execute(
            "select * from deliveries where state = 'waiting' and next_attempt <= ? order by seq limit ?",
            (time.time(), _AT_ONCE),
        ).fetchall()

    async def _attempt(self, row: sqlite3.Row) -> None:
        event = self.event(row["event_id"])
        endpoint = self._account.store.get("webhook_endpoint", row["endpoint_id"])
        if event is None or endpoint is None or endpoint["status"] != "enabled":
            self._settle(row, "dropped", 0, 0.0)
            return
        status = await self.send(event, endpoint)
        if 200 <= status < 300:
            self._settle(row, "delivered", status, 0.0)
            return
        waits = self._account.behaviour.webhook_retry_seconds
        wait = waits[min(row["attempts"], len(waits) - 1)]
        spent = sum(waits[: row["attempts"]]) + max(0, row["attempts"] - len(waits)) * waits[-1]
        state = "failed" if spent > _GIVEN_UP_SECONDS else "waiting"
        self._settle(row, state, status, time.time() + wait)

    def _settle(self, row: sqlite3.Row, state: str, status: int, next_attempt: float) -> None:
        store = self._account.store
        store.connection.execute(
            "update deliveries set state = ?, status = ?, attempts = attempts + 1, next_attempt = ? "
            "where seq = ? and state = 'waiting'",
            (state, status, next_attempt, row["seq"]),
        )
        event = store.get("event", row["event_id"])
        if event is not None and state != "waiting":
            event["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)
            store.put(event)


def _shown(event: Object) -> Object:
    """What is sent: an event of /v2 without its data."""
    if event["object"] == "event":
        return event
    return {key: value for key, value in event.items() if key not in ("data", "reason")}
