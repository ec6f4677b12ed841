"""The account that the stand-in keeps: what every operation is handed.

Belongs here: the time that it is, making and changing objects, events, what is due when. Does not belong
here: what any kind of object does.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from apex_pipelines.platform.clock import Clock
from apex_pipelines.sandbox.stripe.errors import missing
from apex_pipelines.sandbox.stripe.store import Object, Store

API_VERSION = "2026-10-28.endive"


@dataclass
class Behaviour:
    """How the account is set up, where Stripe's dashboard would be asked, and how the stand-in behaves.

    Attributes
    ----------
    retry_days : list of int
        Days from each failed payment of an invoice to the next try. Smart Retries choose their times by a
        model that isn't documented; this schedule is fixed.
    after_retries : str
        What becomes of a subscription whose last try failed: `cancel`, `unpaid` or `past_due`.
    finalize_after_seconds : int
        How long a renewal's invoice stays a draft.
    meter_delay_seconds : int
        How long after it was accepted a meter event is counted, or refused by an event.
    meter_call_seconds : float
        How long a meter event holds its customer and meter; a second one meanwhile is refused.
    meter_duplicate_code : str
        `code` of the refusal of a repeated identifier; empty: none. Stripe documents `duplicate_meter_event`
        for /v2; what people see from /v1 is the message without a code.
    meter_error_names : str
        What an error report names an event by, under `request.identifier`: its `identifier`, or the
        `idempotency_key` of the request, as Stripe's client describes the field.
    requests_per_second : float
        Above it requests are refused; 0: never. Stripe's test mode takes 25.
    webhook_retry_seconds : list of float
        Real seconds from each failed delivery to the next; the last one goes on for three days.
    """

    retry_days: list[int] = field(default_factory=lambda: [3, 5, 7])
    after_retries: Literal["cancel", "past_due", "unpaid"] = "cancel"
    finalize_after_seconds: int = 3_600
    meter_delay_seconds: int = 0
    meter_call_seconds: float = 0.0
    meter_duplicate_code: str = ""
    meter_error_names: Literal["identifier", "idempotency_key"] = "identifier"
    requests_per_second: float = 0.0
    webhook_retry_seconds: list[float] = field(default_factory=lambda: [1.0, 5.0, 30.0, 300.0, 3_600.0])


class Account:
    """One account of the test mode.

    Operations run one after the other, each in a transaction of the store.
    """

    def __init__(self, store: Store, clock: Clock, webhook_secret: str) -> None:
        self.store = store
        self.webhook_secret = webhook_secret
        self.behaviour = Behaviour()
        self.request_id: str | None = None
        self.idempotency_key: str | None = None
        self.render: Callable[[Account, Object], Object] = lambda _, body: body
        self._clock = clock
        self._moment: tuple[int, str | None] | None = None

    # Time.

    @property
    def now(self) -> int:
        """Seconds since 1970 for what is being done: of a test clock, or of the account."""
        return self.account_time() if self._moment is None else self._moment[0]

    @property
    def test_clock(self) -> str | None:
        """The test clock that what is being done lives by."""
        return None if self._moment is None else self._moment[1]

    def account_time(self) -> int:
        """Seconds since 1970, by the account's own clock."""
        fixed = self.store.setting("clock")
        return int(self._clock.now().timestamp()) if fixed is None else int(fixed)

    def live_by(self, test_clock: str | None) -> None:
        """Let the rest of the request happen at the time of that clock."""
        if test_clock is not None and self.test_clock != test_clock:
            found = self.need("test_helpers.test_clock", test_clock)
            self._moment = (found["frozen_time"], test_clock)

    @contextlib.contextmanager
    def at(self, instant: int, test_clock: str | None) -> Iterator[None]:
        """Do something at that time."""
        before, self._moment = self._moment, (instant, test_clock)
        try:
            yield
        finally:
            self._moment = before

    @contextlib.contextmanager
    def request(self, request_id: str, idempotency_key: str | None) -> Iterator[None]:
        """One request, in a transaction."""
        self.request_id, self.idempotency_key = request_id, idempotency_key
        self._moment = (self.account_time(), None)
        try:
            yield
        finally:
            self.request_id, self.idempotency_key, self._moment = None, None, None

    # Objects.

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{uuid.uuid4().hex[:24]}"

    def need(self, object_type: str, object_id: str, param: str = "id", *, deleted: bool = False) -> Object:
        """That object.

        Raises
        ------
        Refusal
            If there is none, or it was deleted and `deleted` is false; `param` is what named it.
        """
        found = self.store.get(object_type, object_id)
        if found is None or (found.get("deleted") and not deleted):
            raise missing(object_type, object_id, param)
        return found

    def create(
        self, body: Object, event: str | None = None, hidden: Object | None = None, *, quiet: bool = False
    ) -> Object:
        """Keep a new object and tell of it."""
        self.store.put(body, hidden)
        if not quiet:
            self.emit(event or f"{body['object']}.created", body)
        return body

    def change(
        self, body: Object, event: str | None = None, *, hidden: Object | None = None, **fields: Any
    ) -> Object:
        """Change fields of an object and tell of it, when they differ; returns the changed one.

        Parameters
        ----------
        event : str
            Type of the event; empty for none.
        """
        # The caller's copy may be older than what one of its calls has changed.
        body = self.store.get(body["object"], body["id"]) or body
        previous = {key: body.get(key) for key, value in fields.items() if body.get(key) != value}
        if not previous and hidden is None:
            return body
        changed = {**body, **fields}
        self.store.put(changed, hidden)
        if event != "" and previous:
            self.emit(event or f"{body['object']}.updated", changed, previous)
        return changed

    def delete(self, body: Object, event: str | None = None) -> Object:
        """Delete an object; what remains says no more than its id."""
        stub = {"id": body["id"], "object": body["object"], "deleted": True}
        self.emit(event or f"{body['object']}.deleted", body)
        self.store.put({**stub, "created": body.get("created", 0)})
        return stub

    # Events.

    def emit(self, event_type: str, body: Object, previous: Object | None = None) -> Object:
        """Write an event with the object as it is now, and queue it for the webhook endpoints."""
        data: Object = {"object": self.render(self, body)}
        if previous is not None:
            data["previous_attributes"] = previous
        event = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": event_type,
        }
        return self._publish(event)

    def emit_thin(self, event_type: str, data: Object, related: Object | None) -> Object:
        """Write an event of /v2, which carries its data only when it is asked for."""
        event = {
            "id": self.new_id("evt"),
            "object": "v2.core.event",
            "context": None,
            "created": iso(self.now),
            "livemode": False,
            "reason": None,
            "related_object": related,
            "type": event_type,
            "data": data,
        }
        return self._publish(event)

    def _publish(self, event: Object) -> Object:
        endpoints = [
            endpoint
            for endpoint in self.store.every("webhook_endpoint")
            if endpoint["status"] == "enabled" and {"*", event["type"]} & set(endpoint["enabled_events"])
        ]
        if "pending_webhooks" in event:
            event["pending_webhooks"] = len(endpoints)
        self.store.put(event)
        for endpoint in endpoints:
            self.store.connection.execute(
                "insert into deliveries (event_id, endpoint_id, next_attempt) values (?, ?, 0)",
                (event["id"], endpoint["id"]),
            )
        return event

    # What is due.

    def schedule(self, kind: str, object_id: str, at: int | None) -> None:
        """Have something done at that time by the clock that rules now; None: not any more."""
        if at is None:
            self.store.connection.execute(
                "delete from due where kind = ? and object_id = ?", (kind, object_id)
            )
            return
        self.store.connection.execute(
            "insert into due values (?, ?, ?, ?) "
            "on conflict (kind, object_id) do update set at = excluded.at",
            (kind, object_id, at, self.test_clock),
        )


def iso(instant: int) -> str:
    """An instant as /v2 writes it."""
    written = datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds")
    return written.replace("+00:00", "Z")
