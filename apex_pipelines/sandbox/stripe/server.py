"""The stand-in as a web server.

Belongs here: a request's way from its bytes to its answer: key, pace, faults, idempotency, one transaction.
Does not belong here: what any address does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from apex_pipelines.sandbox.stripe import (
    catalogue,
    credit_grants,
    customers,
    disputes,
    due,
    events,
    invoice_items,
    invoice_requests,
    meters,
    payment_methods,
    payments,
    subscription_changes,
    subscriptions,
    test_clocks,
    webhooks,
)
from apex_pipelines.sandbox.stripe.account import API_VERSION, Account
from apex_pipelines.sandbox.stripe.control import control_routes
from apex_pipelines.sandbox.stripe.deliveries import Deliveries
from apex_pipelines.sandbox.stripe.errors import Refusal, invalid
from apex_pipelines.sandbox.stripe.faults import Fault, Faults, When, cut
from apex_pipelines.sandbox.stripe.idempotency import Answer, fingerprint, recall, remember
from apex_pipelines.sandbox.stripe.listing import Page
from apex_pipelines.sandbox.stripe.parameters import Given, decode_form
from apex_pipelines.sandbox.stripe.rendering import RENDERERS, expand, render
from apex_pipelines.sandbox.stripe.routes import Directory, Route
from apex_pipelines.sandbox.stripe.store import Object

DOMAINS = (
    catalogue.routes,
    credit_grants.routes,
    customers.routes,
    disputes.routes,
    events.routes,
    invoice_items.routes,
    invoice_requests.routes,
    meters.routes,
    payment_methods.routes,
    payments.routes,
    subscription_changes.routes,
    subscriptions.routes,
    test_clocks.routes,
    webhooks.routes,
)
_TICK_SECONDS = 1.0
_FAULT_TYPES = {429: ("invalid_request_error", "rate_limit"), 500: ("api_error", None)}


class Sandbox:
    """The stand-in: an account, the key to it, and what makes it fail.

    Parameters
    ----------
    account : Account
        The account that is served.
    key : str
        The secret key that requests must bear.
    """

    def __init__(self, account: Account, key: str) -> None:
        self.account = account
        self.faults = Faults()
        self.deliveries = Deliveries(account)
        self._key = key
        self._directory = Directory(DOMAINS)
        self._held: set[tuple[str, str]] = set()
        self._allowance = 0.0
        self._allowed_at = 0.0
        account.render = render

    def application(self) -> Starlette:
        """The ASGI application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self.deliveries.run())]
            yield
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self.deliveries.close()

        return Starlette(
            routes=[
                *control_routes(self),
                HttpRoute("/{path:path}", _Api(self)),
            ],
            lifespan=lifespan,
        )

    async def _tick(self) -> None:
        """Do what has become due while nobody asks."""
        while True:
            with self.account.request("", None), self.account.store.transaction():
                due.catch_up(self.account)
            await asyncio.sleep(_TICK_SECONDS)

    async def answer(self, request: Request) -> Response | None:
        """The answer to a request of Stripe's API; None: its connection is to be cut."""
        path, method = request.url.path, request.method
        body = await request.body()
        fault = self.faults.next(When.BEFORE, method, path)
        if fault is not None and (failed := await _fail(fault)) is not _GOES_ON:
            return failed
        request_id = f"req_{uuid.uuid4().hex[:14]}"
        headers = {
            "Request-Id": request_id,
            "Stripe-Version": request.headers.get("Stripe-Version", API_VERSION),
        }
        idempotency_key = request.headers.get("Idempotency-Key") if method == "POST" else None
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        try:
            answer, more = await self._handle(request, body, request_id, idempotency_key)
        except Refusal as refusal:
            answer, more = Answer(refusal.status, msgspec.json.encode(refusal.body)), {}
            if refusal.status == 400:
                more = {"Stripe-Should-Retry": "false"}
        fault = self.faults.next(When.AFTER, method, path)
        if fault is not None and (failed := await _fail(fault)) is not _GOES_ON:
            return failed
        return Response(answer.body, answer.status, {**headers, **more}, "application/json")

    async def _handle(
        self, request: Request, body: bytes, request_id: str, idempotency_key: str | None
    ) -> tuple[Answer, dict[str, str]]:
        self._check_key(request)
        self._check_pace()
        method, path = request.method, request.url.path
        found = self._directory.find(method, path)
        if found is None:
            raise Refusal(
                404,
                "invalid_request_error",
                f"Unrecognized request URL ({method}: {path}). The stand-in has what this platform uses.",
            )
        route, named = found
        given = _given(request, body)
        with contextlib.ExitStack() as held:
            if route.path == "/v1/billing/meter_events" and self.account.behaviour.meter_call_seconds:
                held.enter_context(self._hold(*meters.held_by(self.account, given)))
                await asyncio.sleep(self.account.behaviour.meter_call_seconds)
            return self._do(route, named, given, body, path, request_id, idempotency_key)

    def _do(
        self,
        route: Route,
        named: dict[str, str],
        given: Given,
        body: bytes,
        path: str,
        request_id: str,
        key: str | None,
    ) -> tuple[Answer, dict[str, str]]:
        """Do what is asked in one transaction, with the answer that a repeated key will get."""
        account = self.account
        if route.method == "GET":
            with account.request(request_id, None):
                return Answer(200, self._content(*route.call(account, named, given))), {}
        request = fingerprint(route.method, path, body)
        with account.request(request_id, key), account.store.transaction():
            if key is not None and (known := recall(account, key, request)) is not None:
                return known, {"Idempotent-Replayed": "true"}
            try:
                answer = Answer(200, self._content(*route.call(account, named, given)))
            except Refusal as refusal:
                if not refusal.changes_kept:
                    raise
                answer = Answer(refusal.status, msgspec.json.encode(refusal.body))
            due.catch_up(account)
            account.store.connection.execute(
                "insert into handled values (?, 1) on conflict (route) do update set times = times + 1",
                (route.name,),
            )
            if key is not None:
                remember(account, key, request, answer)
            return answer, {}

    def _content(self, result: Object | Page, paths: list[str]) -> bytes:
        """The JSON of an answer; what needs no change is passed on as it is stored."""
        if isinstance(result, Page):
            if not paths and result.object_type not in RENDERERS:
                head = {"object": "list", "url": result.url, "has_more": result.has_more}
                data = ",".join(result.bodies)
                return msgspec.json.encode(head)[:-1] + f',"data":[{data}]}}'.encode()
            rendered = [render(self.account, body) for body in result.objects()]
            body: Object = {
                "object": "list", "url": result.url, "has_more": result.has_more, "data": rendered,
            }  # fmt: skip
            expand(self.account, body, paths, in_list=True)
            return msgspec.json.encode(body)
        body = render(self.account, result)
        expand(self.account, body, paths)
        return msgspec.json.encode(body)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != self._key:
            shown = f"{given[:8]}***" if given else "none"
            raise Refusal(
                401,
                "invalid_request_error",
                f"Invalid API Key provided: {shown}. The stand-in prints its key when it starts.",
            )

    def _check_pace(self) -> None:
        rate = self.account.behaviour.requests_per_second
        if not rate:
            return
        now = time.monotonic()
        self._allowance = min(rate, self._allowance + (now - self._allowed_at) * rate)
        self._allowed_at = now
        if self._allowance < 1:
            raise Refusal(429, "invalid_request_error", "Request rate limit exceeded.", code="rate_limit")
        self._allowance -= 1

    @contextlib.contextmanager
    def _hold(self, customer: str, event_name: str) -> Any:
        held = (customer, event_name)
        if held in self._held:
            raise meters.busy(customer, event_name)
        self._held.add(held)
        try:
            yield
        finally:
            self._held.discard(held)


class _Api:
    """Stripe's API as ASGI, since a cut connection has no response."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._sandbox.answer(Request(scope, receive))
        except ClientDisconnect:
            return
        if response is None:
            await cut(scope)
        else:
            await response(scope, receive, send)


_GOES_ON = Response()


async def _fail(fault: Fault) -> Response | None:
    """What a planned fault answers; None: the connection is cut; `_GOES_ON`: it only took time."""
    if fault.seconds:
        await asyncio.sleep(fault.seconds)
    if fault.status:
        kind, code = _FAULT_TYPES.get(fault.status, ("api_error", None))
        refusal = Refusal(fault.status, kind, "Planned by /_sandbox/faults.", code=code)
        return Response(msgspec.json.encode(refusal.body), fault.status, None, "application/json")
    return None if fault.drops else _GOES_ON


def _given(request: Request, body: bytes) -> Given:
    if request.method == "POST":
        try:
            return decode_form(body.decode())
        except UnicodeDecodeError:
            raise invalid("The request's body is no UTF-8 text.") from None
    return decode_form(request.url.query)
