"""The offline Stripe: requests, retries, pages and time, through Stripe's own client."""

from __future__ import annotations

import pytest
import stripe

from tests.stripe.sandbox import Sandbox

CUSTOMERS = "POST /v1/customers"


def test_a_lost_answer_is_repeated_and_the_write_done_once(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client(retries=2)
    stripe_sandbox.fault("/v1/customers", when="after", times=1)
    made = client.v1.customers.create({"email": "ada@example.com"})
    assert made.last_response is not None
    assert made.last_response.headers["Idempotent-Replayed"] == "true"
    assert [found.id for found in client.v1.customers.list().data] == [made.id]
    assert stripe_sandbox.handled(CUSTOMERS) == 1


def test_a_connection_cut_before_the_request_leaves_nothing(stripe_sandbox: Sandbox) -> None:
    stripe_sandbox.fault("/v1/customers", times=1)
    with pytest.raises(stripe.APIConnectionError):
        stripe_sandbox.client().v1.customers.create({"email": "ada@example.com"})
    assert stripe_sandbox.handled() == {}


def test_what_was_answered_outlives_a_killed_process(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    made = [client.v1.customers.create({"name": f"customer {number}"}).id for number in range(30)]
    stripe_sandbox.kill()
    stripe_sandbox.start()
    found = [customer.id for customer in client.v1.customers.list({"limit": 7}).auto_paging_iter()]
    assert found == made[::-1]
