"""The offline Stripe: requests, retries, pages and time, through Stripe's own client."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from tests.stripe.sandbox import Sandbox

CUSTOMERS = "POST /v1/customers"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


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


def test_a_process_killed_while_many_write_keeps_all_that_it_answered(stripe_sandbox: Sandbox) -> None:
    answered: list[str] = []

    def write(number: int) -> None:
        client = stripe_sandbox.client()
        with contextlib.suppress(stripe.APIConnectionError):
            while True:
                answered.append(client.v1.customers.create({"name": str(number)}).id)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    while len(answered) < 50:
        time.sleep(0.01)
    stripe_sandbox.kill()
    for writer in writers:
        writer.join(20)
    stripe_sandbox.start()
    kept = {
        customer.id
        for customer in stripe_sandbox.client().v1.customers.list({"limit": 100}).auto_paging_iter()
    }
    assert set(answered) <= kept
    assert len(kept) <= len(answered) + 3  # what was done, and its answer lost


def test_a_key_repeats_its_answer_for_a_day_and_for_nothing_else(stripe_sandbox: Sandbox) -> None:
    stripe_sandbox.clock(NOW)
    client = stripe_sandbox.client()
    options: Any = {"idempotency_key": "first"}
    made = client.v1.customers.create({"name": "Ada"}, options)
    again = client.v1.customers.create({"name": "Ada"}, options)
    assert again.id == made.id
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "Bea"}, options)
    stripe_sandbox.clock(NOW + timedelta(hours=24))
    assert client.v1.customers.create({"name": "Bea"}, options).id != made.id


def test_a_refused_request_does_not_use_up_its_key_but_a_declined_card_does(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    options: Any = {"idempotency_key": "first"}
    wrong: Any = {"nmae": "Ada"}
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.create(wrong, options)
    client.v1.customers.create({"name": "Ada"}, options)

    customer = client.v1.customers.create()
    client.v1.invoice_items.create({"customer": customer.id, "amount": 500, "currency": "usd"})
    invoice = client.v1.invoices.create(
        {"customer": customer.id, "pending_invoice_items_behavior": "include"}
    )
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            client.v1.invoices.pay(
                invoice.id, {"payment_method": "pm_card_chargeDeclined"}, {"idempotency_key": "second"}
            )
    assert len(client.v1.charges.list({"customer": customer.id}).data) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_planned_errors_come_as_often_as_planned(stripe_sandbox: Sandbox, status: int) -> None:
    stripe_sandbox.fault("/v1/customers", method="GET", status=status, times=1, skip=1)
    client = stripe_sandbox.client()
    client.v1.customers.list()
    with pytest.raises(stripe.StripeError) as failed:
        client.v1.customers.list()
    assert failed.value.http_status == status
    client.v1.customers.list()
    assert [fault["happened"] for fault in stripe_sandbox.faults()] == [1]


def test_an_answer_may_come_after_the_clients_patience(stripe_sandbox: Sandbox) -> None:
    stripe_sandbox.fault("/v1/customers", method="POST", when="after", seconds=1.5, times=1)
    client = stripe_sandbox.client(http_client=stripe.RequestsClient(timeout=0.5))
    options: Any = {"idempotency_key": "slow"}
    with pytest.raises(stripe.APIConnectionError):
        client.v1.customers.create({"name": "Ada"}, options)
    again = client.v1.customers.create({"name": "Ada"}, options)
    assert [found.id for found in client.v1.customers.list().data] == [again.id]


def test_a_share_of_requests_fails_the_same_way_for_the_same_seed(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    outcomes = []
    for _ in range(2):
        stripe_sandbox.fault("/v1/products", share=0.4, seed=7, status=500)
        failed = []
        for number in range(30):
            try:
                client.v1.products.list()
            except stripe.APIError:
                failed.append(number)
        outcomes.append(failed)
        stripe_sandbox.no_faults()
    assert outcomes[0] == outcomes[1]
    assert 3 < len(outcomes[0]) < 25


def test_requests_above_the_pace_are_refused(stripe_sandbox: Sandbox) -> None:
    stripe_sandbox.behave(requests_per_second=5)
    client = stripe_sandbox.client()
    outcomes = []
    for _ in range(40):
        try:
            outcomes.append(client.v1.customers.list().object)
        except stripe.RateLimitError as error:
            outcomes.append(str(error.http_status))
    assert set(outcomes) == {"list", "429"}


def test_pages_go_both_ways_and_say_whether_there_is_more(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    made = [client.v1.customers.create().id for _ in range(5)][::-1]
    page = client.v1.customers.list({"limit": 2, "starting_after": made[1]})
    assert ([customer.id for customer in page.data], page.has_more) == (made[2:4], True)
    page = client.v1.customers.list({"limit": 2, "ending_before": made[4]})
    assert ([customer.id for customer in page.data], page.has_more) == (made[2:4], True)
    page = client.v1.customers.list({"limit": 2, "starting_after": made[3]})
    assert ([customer.id for customer in page.data], page.has_more) == (made[4:], False)
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.list({"limit": 101})


def test_a_list_loses_nothing_when_a_page_is_taken_while_others_are_added(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    made = [client.v1.customers.create().id for _ in range(6)]
    first = client.v1.customers.list({"limit": 3})
    client.v1.customers.create()
    client.v1.customers.delete(first.data[-1].id)
    rest = client.v1.customers.list({"limit": 3, "starting_after": first.data[-1].id})
    assert [customer.id for customer in (*first.data, *rest.data)] == made[::-1]
    gone: Any = client.v1.customers.retrieve(first.data[-1].id)
    assert gone.deleted


def test_what_is_named_by_its_id_is_put_in_its_place_when_asked(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    customer = client.v1.customers.create({"payment_method": "pm_card_visa"})
    price = client.v1.prices.create(
        {
            "currency": "usd",
            "product_data": {"name": "Indie"},
            "recurring": {"interval": "month"},
            "unit_amount": 9_900,
        }
    )
    card = client.v1.customers.payment_methods.list(customer.id).data[0].id
    client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": card}})
    made: Any = client.v1.subscriptions.create(
        {
            "customer": customer.id,
            "items": [{"price": price.id}],
            "expand": ["latest_invoice.payments", "customer"],
        }
    )
    assert made.customer.invoice_settings.default_payment_method == card
    assert made.latest_invoice.payments.data[0].status == "paid"
    page: Any = client.v1.subscriptions.list({"expand": ["data.latest_invoice"]})
    assert page.data[0].latest_invoice.total == 9_900
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        client.v1.subscriptions.list({"expand": ["data.nonsense"]})


@pytest.mark.measures
def test_a_hundred_thousand_objects_are_seeded_and_paged_without_scanning(stripe_sandbox: Sandbox) -> None:
    client = stripe_sandbox.client()
    one = json.loads(str(client.v1.customers.create({"name": "template"})))
    objects = ({**one, "id": f"cus_{number:06}", "created": number} for number in range(100_000))
    assert stripe_sandbox.seed(objects) == 100_000

    def seconds(after: str) -> float:
        started = time.monotonic()
        for _ in range(10):
            page = client.v1.customers.list({"limit": 100, "starting_after": after})
            assert len(page.data) == 100
        return time.monotonic() - started

    assert seconds("cus_000200") < 3 * seconds("cus_099900") + 0.1
