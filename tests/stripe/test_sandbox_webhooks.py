"""The offline Stripe: webhooks, at least once and in any way that a test wants them."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import stripe

from tests.stripe.sandbox import Sandbox


class Receiver:
    """An endpoint over HTTP; `answers` are given first, then 200."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, str]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((body, self.headers["Stripe-Signature"]))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver(stripe_sandbox: Sandbox) -> Iterator[Receiver]:
    receiver = Receiver()
    stripe_sandbox.client().v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]})
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_events_arrive_signed_as_stripes_own_library_checks(
    stripe_sandbox: Sandbox, receiver: Receiver
) -> None:
    customer = stripe_sandbox.client().v1.customers.create({"email": "ada@example.com"})
    wait_for(lambda: len(receiver.got) == 1)
    body, signature = receiver.got[0]
    event = stripe.Webhook.construct_event(body, signature, stripe_sandbox.webhook_secret)
    assert (event.type, event.data.object["id"]) == ("customer.created", customer.id)
    fetched = stripe_sandbox.client().v1.events.retrieve(event.id)
    assert fetched.data.object["id"] == customer.id


def test_what_was_not_answered_well_comes_again_also_after_a_kill(
    stripe_sandbox: Sandbox, receiver: Receiver
) -> None:
    stripe_sandbox.behave(webhook_retry_seconds=[0.5])
    receiver.answers = [500, 503]
    stripe_sandbox.client().v1.customers.create()
    wait_for(lambda: len(receiver.got) == 1)
    stripe_sandbox.kill()
    stripe_sandbox.start()
    wait_for(lambda: stripe_sandbox.deliveries()[0]["state"] == "delivered")
    assert len({body for body, _ in receiver.got}) == 1
    assert len(receiver.got) >= 3


def test_events_can_come_twice_in_reverse_late_badly_signed_or_never(
    stripe_sandbox: Sandbox, receiver: Receiver
) -> None:
    start = datetime(2026, 6, 1, tzinfo=UTC)
    stripe_sandbox.clock(start)
    stripe_sandbox.hold_webhooks()
    client = stripe_sandbox.client()
    for number in range(3):
        client.v1.customers.create({"name": str(number)})
    ids = [event.id for event in client.v1.events.list()][::-1]
    assert receiver.got == []

    assert stripe_sandbox.deliver(reverse=True, times=2) == [200] * 6
    names = [json.loads(body)["data"]["object"]["name"] for body, _ in receiver.got]
    assert names == ["2", "2", "1", "1", "0", "0"]

    stripe_sandbox.deliver([ids[0]], signature="wrong")
    stripe_sandbox.deliver([ids[0]], age_seconds=301)
    secret = stripe_sandbox.webhook_secret
    for body, signature in receiver.got[-2:]:
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, signature, secret)

    stripe_sandbox.forget_webhooks(ids[:2])
    stripe_sandbox.clock(start + timedelta(days=1))
    receiver.got.clear()
    stripe_sandbox.hold_webhooks(False)
    wait_for(lambda: len(receiver.got) == 1)
    late = json.loads(receiver.got[0][0])
    assert (late["id"], late["created"]) == (ids[2], int(start.timestamp()))
