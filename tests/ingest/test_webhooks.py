"""Webhooks: believed only when signed, answered 200 only when stored, stored once."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from apex_pipelines.settings import Settings
from apex_pipelines.webhooks.signatures import BadSignature, verify_stripe, verify_svix
from tests.conftest import free_port
from tests.ingest.conftest import Api
from tests.ingest.webhook_bodies import (
    NOW,
    RESEND_SECRET,
    SECRETS,
    STRIPE_SECRET,
    resend_headers,
    stripe_event,
    stripe_headers,
)


@pytest.fixture
def hooks(new_api: Callable[..., Api]) -> Iterator[httpx.Client]:
    """A client of an API whose secrets are set."""
    with httpx.Client(base_url=new_api(**SECRETS).url, timeout=15) as client:
        yield client


def inbox(engine: sa.Engine) -> list[Any]:
    query = "select provider, event_id, event_type, payload, received_at, processed_at from webhook_inbox"
    with engine.connect() as connection:
        return list(connection.execute(sa.text(f"{query} order by id")))


def test_signatures_made_by_the_providers_own_packages_are_believed() -> None:
    """Vectors from stripe 16.1.0 (`WebhookSignature.generate_signature_header`) and svix (`Webhook.sign`)."""
    at = datetime.fromtimestamp(NOW, UTC)
    header = "t=1780272000,v1=8e8a972d5e60898499ced3a51325242ae0535474127429ba3e727b58858780e9"
    verify_stripe(b'{"id": "evt_1", "type": "invoice.paid"}', header, STRIPE_SECRET, at)
    headers = {
        "svix-id": "msg_1",
        "svix-timestamp": str(NOW),
        "svix-signature": "v1,1eeLdNQg9KvXEKo4T+Hmree+ceWa5h37y37+fsFJSUg=",
    }
    assert verify_svix(b'{"type": "email.delivered"}', headers, RESEND_SECRET, at) == "msg_1"


def test_a_signed_event_is_stored_once_as_it_came(hooks: httpx.Client, engine: sa.Engine) -> None:
    body = stripe_event(data={"name": "Zoë \u0000"}, created=1)
    for duplicate in (False, True):
        answer = hooks.post("/webhooks/stripe", content=body, headers=stripe_headers(body))
        assert (answer.status_code, answer.json()) == (200, {"received": True, "duplicate": duplicate})
    mail = b'{"type": "email.bounced", "data": {}}'
    for duplicate in (False, True):
        answer = hooks.post("/webhooks/resend", content=mail, headers=resend_headers(mail))
        assert (answer.status_code, answer.json()) == (200, {"received": True, "duplicate": duplicate})
    at = datetime(2026, 6, 1, tzinfo=UTC)
    rows = [(row[0], row[1], row[2], bytes(row[3]), *row[4:]) for row in inbox(engine)]
    assert rows == [
        ("stripe", "evt_1", "invoice.paid", body, at, None),
        ("resend", "msg_1", "email.bounced", mail, at, None),
    ]


def test_what_is_not_signed_by_the_provider_lately_is_refused(hooks: httpx.Client, engine: sa.Engine) -> None:
    body = stripe_event()
    good = stripe_headers(body)["stripe-signature"]
    stripe = [
        {},
        {"stripe-signature": ""},
        {"stripe-signature": "nonsense"},
        {"stripe-signature": good.split(",")[0]},
        {"stripe-signature": good.split(",")[1]},
        {"stripe-signature": good.replace("v1=", "v0=")},
        {"stripe-signature": f"t=1,{good}"},
        {"stripe-signature": good.replace(f"t={NOW}", f"t={NOW}.0")},
        {"stripe-signature": f"t={'9' * 3000},v1=00"},
        {"stripe-signature": "t=1,v1=" + "0" * 8000},
        stripe_headers(body, secret="whsec_other"),
        stripe_headers(body + b" "),
        stripe_headers(body, at=NOW - 301),
        stripe_headers(body, at=NOW + 301),
    ]
    mail = b'{"type": "email.sent"}'
    own = resend_headers(mail)
    resend = [
        {},
        {name: value for name, value in own.items() if name != "svix-id"},
        {**own, "svix-id": "msg_2"},
        {**own, "svix-timestamp": str(NOW + 1)},
        {**own, "svix-signature": own["svix-signature"].replace("v1,", "v2,")},
        {**own, "svix-signature": "v1,AAAA" + " v1,AAAA" * 100},
        resend_headers(mail, secret="whsec_" + base64.b64encode(b"other").decode()),
        resend_headers(mail, at=NOW - 301),
        resend_headers(mail, at=NOW + 301),
    ]
    for path, content, cases in (("stripe", body, stripe), ("resend", mail, resend)):
        for headers in cases:
            answer = hooks.post(f"/webhooks/{path}", content=content, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_signature"), headers
    assert inbox(engine) == []


def test_both_ends_of_the_tolerance_and_rolled_secrets_are_believed(hooks: httpx.Client) -> None:
    body = stripe_event()
    for at in (NOW - 300, NOW + 300):
        assert hooks.post("/webhooks/stripe", content=body, headers=stripe_headers(body, at=at)).is_success
    old = stripe_headers(body, secret="whsec_old")["stripe-signature"]
    both = {"stripe-signature": old + "," + stripe_headers(body)["stripe-signature"].split(",")[1]}
    assert hooks.post("/webhooks/stripe", content=body, headers=both).is_success
    mail = b'{"type": "email.sent"}'
    own = resend_headers(mail)
    own["svix-signature"] = f"v1,AAAA {own['svix-signature']}"
    assert hooks.post("/webhooks/resend", content=mail, headers=own).is_success


def test_what_is_signed_and_no_event_is_refused(hooks: httpx.Client, engine: sa.Engine) -> None:
    for body in (b"", b"{", b"[]", b"{}", b'{"id": "", "type": "x"}', b'{"id": "evt_1", "type": 5}',
                 b'{"id": "a\\u0000", "type": "x"}', b'{"id": "a", "type": "x", "y": "\xff"}',
                 b'{"id": "a", "type": "x", "y": ' + b"[" * 100_000):  # fmt: skip
        answer = hooks.post("/webhooks/stripe", content=body, headers=stripe_headers(body))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_webhook"), body[:40]
    large = b" " * 1_048_577
    assert hooks.post("/webhooks/stripe", content=large, headers=stripe_headers(large)).status_code == 413
    assert inbox(engine) == []


def test_the_same_event_sent_at_once_by_many_is_stored_once(hooks: httpx.Client, engine: sa.Engine) -> None:
    body = stripe_event()
    with ThreadPoolExecutor(8) as senders:
        answers = list(
            senders.map(
                lambda _: hooks.post("/webhooks/stripe", content=body, headers=stripe_headers(body)),
                range(24),
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    assert sum(not answer.json()["duplicate"] for answer in answers) == 1
    assert len(inbox(engine)) == 1


def test_without_its_secret_an_endpoint_asks_to_send_again(http: httpx.Client) -> None:
    for path in ("stripe", "resend"):
        answer = http.post(
            f"/webhooks/{path}", content=stripe_event(), headers=stripe_headers(stripe_event())
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "webhook_not_configured")
        assert "WEBHOOK_SECRET" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.measures
def test_without_postgres_the_provider_is_asked_to_send_again_and_nobody_waits(
    new_api: Callable[..., Api], engine: sa.Engine
) -> None:
    api = new_api(**SECRETS)
    body = stripe_event()
    with httpx.Client(base_url=api.url, timeout=15) as client, ThreadPoolExecutor(4) as senders:

        def send() -> httpx.Response:
            return client.post("/webhooks/stripe", content=body, headers=stripe_headers(body))

        with engine.connect() as holder:
            # A lock that nobody gives back stands for a database that does not answer.
            holder.execute(sa.text("lock table webhook_inbox in access exclusive mode"))
            waiting = [senders.submit(send) for _ in range(4)]
            time.sleep(0.3)
            begun = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - begun < 1  # the event loop is free meanwhile
            answers = [future.result() for future in waiting]
            holder.rollback()
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["code"] for answer in answers} == {"inbox_unavailable"}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert send().status_code == 200
    assert len(inbox(engine)) == 1


def test_a_database_that_is_down_is_a_503(new_api: Callable[..., Api], settings: Settings) -> None:
    settings.database_url = f"postgresql://postgres@127.0.0.1:{free_port()}/apex"
    api = new_api(**SECRETS)
    body = stripe_event()
    answer = httpx.post(f"{api.url}/webhooks/stripe", content=body, headers=stripe_headers(body), timeout=15)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "inbox_unavailable")


def test_a_secret_that_can_be_none_is_said_at_the_start(
    process_environment: Callable[..., dict[str, str]],
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ingest_api", "--port", str(free_port())],
        env=process_environment(RESEND_WEBHOOK_SECRET="whsec_?mine?"),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: RESEND_WEBHOOK_SECRET: ")
    assert "?mine?" not in ended.stderr


def test_a_header_that_is_no_ascii_is_refused() -> None:
    at = datetime.fromtimestamp(NOW, UTC)
    for header in ("t=١,v1=00", "t=1,v1=é"):
        with pytest.raises(BadSignature):
            verify_stripe(b"", header, STRIPE_SECRET, at)
