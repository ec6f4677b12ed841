"""What tests and demos steer the stand-in by, under `/_sandbox/`.

Belongs here: those addresses. Does not belong here: anything that Stripe has.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from apex_pipelines.sandbox.stripe import due
from apex_pipelines.sandbox.stripe.account import API_VERSION, Behaviour
from apex_pipelines.sandbox.stripe.disputes import open_dispute
from apex_pipelines.sandbox.stripe.errors import Refusal
from apex_pipelines.sandbox.stripe.faults import Fault
from apex_pipelines.sandbox.stripe.store import Object

if TYPE_CHECKING:
    from apex_pipelines.sandbox.stripe.server import Sandbox

_LISTS_INSIDE = {"subscription": "items", "invoice": "lines"}


class BadControl(ValueError):
    """The request to the controls is wrong; the message says how."""


def control_routes(sandbox: Sandbox) -> list[Route]:
    """The addresses, for this stand-in."""
    controls = _Controls(sandbox)
    return [
        Route("/_sandbox/ping", _answering(controls.ping), methods=["GET"]),
        Route("/_sandbox/clock", _answering(controls.clock), methods=["GET", "POST"]),
        Route("/_sandbox/faults", _answering(controls.faults), methods=["GET", "POST", "DELETE"]),
        Route("/_sandbox/behaviour", _answering(controls.behaviour), methods=["GET", "POST"]),
        Route("/_sandbox/handled", _answering(controls.handled), methods=["GET", "DELETE"]),
        Route("/_sandbox/payment_methods", _answering(controls.payment_methods), methods=["POST"]),
        Route("/_sandbox/disputes", _answering(controls.disputes), methods=["POST"]),
        Route("/_sandbox/webhooks", _answering(controls.webhooks), methods=["GET", "POST"]),
        Route("/_sandbox/deliver", _answering(controls.deliver), methods=["POST"]),
        Route("/_sandbox/forget", _answering(controls.forget), methods=["POST"]),
        Route("/_sandbox/meter_events", _answering(controls.meter_events), methods=["GET"]),
        Route("/_sandbox/state", _answering(controls.state), methods=["DELETE"]),
        Route("/_sandbox/seed", _answering(controls.seed), methods=["POST"]),
    ]


def _answering(control: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            answer, status = await control(request), 200
        except (BadControl, Refusal, msgspec.ValidationError, msgspec.DecodeError, re.error) as error:
            answer, status = {"error": str(error)}, 400
        return Response(msgspec.json.encode(answer), status, None, "application/json")

    return endpoint


class _Card(msgspec.Struct, forbid_unknown_fields=True):
    """What a stored card does from now on; no `decline_code`: it is good."""

    id: str
    decline_code: str | None = None
    disputed: bool = False


class _Dispute(msgspec.Struct, forbid_unknown_fields=True):
    charge: str
    reason: str = "fraudulent"


class _Hold(msgspec.Struct, forbid_unknown_fields=True):
    held: bool


class _Events(msgspec.Struct, forbid_unknown_fields=True):
    """Ids of events; None: all that wait."""

    events: list[str] | None = None


class _Delivery(msgspec.Struct, forbid_unknown_fields=True):
    """Events to send now, whether they wait or not.

    Attributes
    ----------
    events : list of str
        Their ids in the order in which they are sent; None: all, from the oldest on.
    reverse : bool
        Send the last one first.
    times : int
        How often each is sent, one right after the other.
    signature : str
        `right`, or `wrong`: made with another secret.
    age_seconds : int
        How old the signature's time is.
    """

    events: list[str] | None = None
    reverse: bool = False
    times: int = 1
    signature: Literal["right", "wrong"] = "right"
    age_seconds: int = 0


class _Controls:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._account = sandbox.account
        self._store = sandbox.account.store

    async def ping(self, _: Request) -> Any:
        return {"api_version": API_VERSION, "now": self._account.account_time()}

    async def clock(self, request: Request) -> Any:
        """`{"now": 1780272000}` fixes or moves the account's time, `{"now": null}` is the machine's again.

        What becomes due on the way is done, in the order of its times.
        """
        if request.method == "POST":
            given = msgspec.json.decode(await request.body(), type=dict[str, int | None])
            if set(given) != {"now"}:
                raise BadControl(f"expected the one key `now`, got {sorted(given)}")
            now = given["now"]
            fixed = self._store.setting("clock")
            if now is not None and fixed is not None and now < fixed:
                raise BadControl(f"time moves only forward: it is {fixed}, and {now} was asked for")
            with self._account.request("", None), self._store.transaction():
                self._store.set_setting("clock", now)
                due.catch_up(self._account)
        fixed = self._store.setting("clock")
        return {"now": self._account.account_time(), "fixed": fixed is not None}

    async def faults(self, request: Request) -> Any:
        """Plan a failure (`Fault`), list what is planned with how often it happened, or forget all."""
        faults = self._sandbox.faults
        if request.method == "POST":
            faults.plan(msgspec.json.decode(await request.body(), type=Fault))
        if request.method == "DELETE":
            faults.plans.clear()
        return [
            {**msgspec.to_builtins(plan.fault), "seen": plan.seen, "happened": plan.happened}
            for plan in faults.plans
        ]

    async def behaviour(self, request: Request) -> Any:
        """Show or change the account's `Behaviour`."""
        if request.method == "POST":
            given = msgspec.json.decode(await request.body(), type=dict[str, Any])
            unknown = set(given) - {field.name for field in fields(Behaviour)}
            if unknown:
                raise BadControl(f"no such behaviour: {sorted(unknown)}")
            changed = msgspec.convert({**asdict(self._account.behaviour), **given}, Behaviour, strict=False)
            self._account.behaviour = changed
            self._store.set_setting("behaviour", asdict(changed))
        return asdict(self._account.behaviour)

    async def handled(self, request: Request) -> Any:
        """How often each kind of write was done; a replayed or refused one is none."""
        if request.method == "DELETE":
            self._store.connection.execute("delete from handled")
        return dict(
            self._store.connection.execute("select route, times from handled order by route").fetchall()
        )

    async def payment_methods(self, request: Request) -> Any:
        """Let a stored card go bad, or recover."""
        card = msgspec.json.decode(await request.body(), type=_Card)
        with self._store.transaction():
            body = self._account.need("payment_method", card.id)
            self._store.put(body, {"decline_code": card.decline_code, "disputed": card.disputed})
        return {"id": card.id}

    async def disputes(self, request: Request) -> Any:
        """Let the holder of the card dispute a charge."""
        given = msgspec.json.decode(await request.body(), type=_Dispute)
        with self._account.request("", None), self._store.transaction():
            charge = self._account.need("charge", given.charge)
            return open_dispute(self._account, charge, given.reason)

    async def webhooks(self, request: Request) -> Any:
        """Hold deliveries back or let them go; list them all."""
        deliveries = self._sandbox.deliveries
        if request.method == "POST":
            deliveries.hold(msgspec.json.decode(await request.body(), type=_Hold).held)
        rows = self._store.connection.execute(
            "select event_id, endpoint_id, attempts, state, status from deliveries order by seq"
        )
        return {"held": deliveries.held, "deliveries": [dict(row) for row in rows]}

    async def deliver(self, request: Request) -> Any:
        """Send events now (`_Delivery`) to every endpoint; the statuses that were answered."""
        wanted = msgspec.json.decode(await request.body(), type=_Delivery)
        deliveries = self._sandbox.deliveries
        ids = wanted.events
        if ids is None:
            kinds = "select id from objects where type in ('event', 'v2.core.event') order by seq"
            ids = [row["id"] for row in self._store.connection.execute(kinds)]
        secret = None if wanted.signature == "right" else "whsec_of_somebody_else"
        at = self._account.account_time() - wanted.age_seconds
        statuses = []
        for event_id in reversed(ids) if wanted.reverse else ids:
            event = deliveries.event(event_id)
            if event is None:
                raise BadControl(f"there is no event {event_id!r}")
            for endpoint in self._store.every("webhook_endpoint"):
                for _ in range(wanted.times):
                    statuses.append(await deliveries.send(event, endpoint, secret=secret, at=at))
        return statuses

    async def forget(self, request: Request) -> Any:
        """Never deliver these events (`_Events`)."""
        given = msgspec.json.decode(await request.body(), type=_Events)
        chosen = "" if given.events is None else f"and event_id in ({', '.join('?' * len(given.events))})"
        done = self._store.connection.execute(
            f"update deliveries set state = 'dropped' where state = 'waiting' {chosen}",  # noqa: S608
            given.events or [],
        )
        return {"dropped": done.rowcount}

    async def meter_events(self, _: Request) -> Any:
        """Every meter event that was accepted, in its order, and what became of it."""
        rows = self._store.connection.execute(
            "select identifier, event_name, customer, value, timestamp, created, state from meter_events "
            "order by seq"
        )
        return [dict(row) for row in rows]

    async def state(self, _: Request) -> Any:
        """Be as new: no objects, the machine's time, nothing planned; the key and the secret stay."""
        with self._store.transaction():
            self._store.clear()
        self._account.behaviour = Behaviour()
        self._sandbox.faults.plans.clear()
        self._sandbox.deliveries.hold(False)
        return {}

    async def seed(self, request: Request) -> Any:
        """Keep objects as they are given, one JSON object a line, without events."""
        lines = (line for line in (await request.body()).splitlines() if line.strip())
        with self._store.transaction():
            return {"kept": self._store.put_many(self._parts(lines))}

    def _parts(self, lines: Any) -> Any:
        """Objects, and those in the lists inside them, which are kept by themselves."""
        for line in lines:
            body: Object = msgspec.json.decode(line)
            if not isinstance(body.get("id"), str) or not isinstance(body.get("object"), str):
                raise BadControl(f"an object needs `id` and `object`: {line[:100]!r}")
            inside = body.pop(_LISTS_INSIDE.get(body["object"], ""), None)
            yield body
            for part in (inside or {}).get("data", []):
                price = part.get("price")
                yield {**part, "price": price["id"]} if isinstance(price, dict) else part
