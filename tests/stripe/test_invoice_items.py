"""What use costs is on Stripe's invoices, once, whatever was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import stripe
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.stripe.accounts import push
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.invoice_items import PostedItem, post_items
from tests.stripe.sandbox import Sandbox

BEGAN = datetime(2026, 6, 1, tzinfo=UTC)
TRIAL_ENDS = BEGAN + timedelta(days=14)
ENDS = datetime(2026, 7, 15, tzinfo=UTC)
ITEMS = "POST /v1/invoiceitems"


class Books:
    """Customers with a card at Stripe, and the lines that dbt would have computed for them."""

    def __init__(self, sandbox: Sandbox, engine: sa.Engine, warehouse: Client, clock: ManualClock) -> None:
        self.sandbox, self.engine, self.warehouse, self.clock = sandbox, engine, warehouse, clock
        self.client = sandbox.client()
        self.stripe_ids: dict[str, str] = {}

    def sign_up(self, name: str) -> str:
        with self.engine.begin() as connection:
            customer = create_customer(connection, NewCustomer(name, f"{name}@example.com"), self.clock.now())
            subscribe(
                connection, NewSubscription(customer, "indie", self.clock.now(), trial=True), self.clock.now()
            )
        [pushed] = push(self.client, self.engine, self.clock.now(), livemode=False, customer_id=customer)
        assert pushed.stripe_customer_id is not None
        card = self.client.v1.payment_methods.attach("pm_card_visa", {"customer": pushed.stripe_customer_id})
        self.client.v1.customers.update(
            pushed.stripe_customer_id, {"invoice_settings": {"default_payment_method": card.id}}
        )
        self.stripe_ids[customer] = pushed.stripe_customer_id
        return customer

    def move(self, now: datetime) -> None:
        self.sandbox.clock(now)
        self.clock.set(now)

    def line(self, customer: str, due: int, *, charged: int | None = 0, kind: str = "overage") -> None:
        """What dbt says of the customer's line of the period that ended in July, from now on."""
        self.warehouse.command(
            "alter table intermediate.int_stripe_lines delete where customer_id = {c:String} "
            "and line_type = {k:String} settings mutations_sync = 1",
            parameters={"c": customer, "k": kind},
        )
        row: list[Any] = [
            customer, "sub", kind, "" if kind == "subscription" else "impressions", TRIAL_ENDS, ENDS, due,
            charged, "usd",
        ]  # fmt: skip
        self.warehouse.insert("int_stripe_lines", [row], database="intermediate")

    def post(self, retries: int = 0) -> list[PostedItem]:
        return post_items(
            self.sandbox.client(retries=retries),
            self.engine,
            self.warehouse,
            self.clock.now(),
            livemode=False,
        )

    def invoices(self, customer: str) -> list[Any]:
        """Oldest first."""
        listed = self.client.v1.invoices.list({"customer": self.stripe_ids[customer], "limit": 100})
        return listed.data[::-1]

    def amounts(self, invoice: Any) -> list[int]:
        """Of our items."""
        return [line.amount for line in invoice.lines.data if line.parent.type == "invoice_item_details"]

    def ledger(self) -> list[tuple[int, str]]:
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.text("select amount_cents, state from stripe_invoice_ledger order by id")
            )
            return [(amount, state) for amount, state in rows]


@pytest.fixture
def books(
    stripe_sandbox: Sandbox, engine: sa.Engine, warehouse: Client, clock: ManualClock
) -> Iterator[Books]:
    found = Books(stripe_sandbox, engine, warehouse, clock)
    found.move(BEGAN)
    with engine.begin() as connection:
        sync_plans(connection)
        bootstrap(found.client, connection, clock.now(), livemode=False)
    warehouse.command("create database if not exists intermediate")
    warehouse.command("drop view if exists intermediate.int_stripe_lines sync")
    warehouse.command(
        "create or replace table intermediate.int_stripe_lines (customer_id String, subscription_id String, "
        "line_type String, metric_type String, period_start DateTime64(6, 'UTC'), "
        "period_end DateTime64(6, 'UTC'), due_cents Int64, charged_cents Nullable(Int64), currency String) "
        "engine = MergeTree order by customer_id"
    )
    yield found
    warehouse.command("drop table intermediate.int_stripe_lines sync")


def test_an_item_goes_onto_the_draft_and_is_collected_with_it(books: Books) -> None:
    anna, ben = books.sign_up("anna"), books.sign_up("ben")
    books.move(ENDS + timedelta(minutes=10))
    books.line(anna, 1_980)
    books.line(ben, 0)
    [item] = books.post()
    draft = books.invoices(anna)[-1]
    assert (item.customer_id, item.amount_cents, item.invoice_id) == (anna, 1_980, draft.id)
    assert draft.status == "draft"
    books.move(ENDS + timedelta(hours=2))
    paid = books.invoices(anna)[-1]
    assert (paid.status, paid.total, books.amounts(paid)) == ("paid", 9_900 + 1_980, [1_980])
    assert books.amounts(books.invoices(ben)[-1]) == []
    assert books.post() == []
    assert books.ledger() == [(1_980, "sent")]


def test_what_changes_later_is_on_the_next_invoice_as_a_difference(books: Books) -> None:
    anna = books.sign_up("anna")
    books.move(ENDS + timedelta(minutes=10))
    books.line(anna, 1_980)
    books.post()
    books.move(ENDS + timedelta(days=3))
    for due, posted in ((2_500, 520), (2_500, None), (1_000, -1_500), (1_980, 980)):
        books.line(anna, due)
        assert [item.amount_cents for item in books.post()] == ([] if posted is None else [posted])
    books.move(datetime(2026, 8, 15, 3, tzinfo=UTC))
    assert sorted(books.amounts(books.invoices(anna)[-1])) == [-1_500, 520, 980]
    assert books.invoices(anna)[-1].total == 9_900


def test_a_month_that_stripe_has_not_charged_is_left_to_stripe(books: Books) -> None:
    anna = books.sign_up("anna")
    books.move(ENDS + timedelta(minutes=10))
    books.line(anna, 9_900, charged=None, kind="subscription")
    assert books.post() == []
    books.line(anna, 29_900, charged=9_900, kind="subscription")
    assert [item.amount_cents for item in books.post()] == [20_000]


def test_a_lost_answer_leaves_one_item_even_when_the_draft_is_final_by_the_next_try(books: Books) -> None:
    anna = books.sign_up("anna")
    books.move(ENDS + timedelta(minutes=10))
    books.line(anna, 1_980)
    books.sandbox.fault(path="/v1/invoiceitems", method="POST", when="after", times=1)
    with pytest.raises(stripe.APIConnectionError):
        books.post()
    assert books.ledger() == [(1_980, "pending")]
    books.move(ENDS + timedelta(days=2))  # the invoice is paid, and the key forgotten
    assert [item.amount_cents for item in books.post()] == [1_980]
    assert books.post() == []
    assert books.sandbox.handled(ITEMS) == 1
    assert books.amounts(books.invoices(anna)[-1]) == [1_980]
    assert books.ledger() == [(1_980, "sent")]


def test_a_request_that_never_arrived_is_made_again(books: Books) -> None:
    anna = books.sign_up("anna")
    books.move(ENDS + timedelta(minutes=10))
    books.line(anna, 1_980)
    books.sandbox.fault(path="/v1/invoiceitems", method="POST", when="before", times=1)
    with pytest.raises(stripe.APIConnectionError):
        books.post()
    books.move(ENDS + timedelta(days=2))
    books.post()
    assert books.amounts(books.invoices(anna)[-1]) == []  # final before; the next one has it
    books.move(datetime(2026, 8, 15, 3, tzinfo=UTC))
    assert books.amounts(books.invoices(anna)[-1]) == [1_980]
    assert books.sandbox.handled(ITEMS) == 1


def test_whom_stripe_refuses_keeps_nobody_else_waiting(books: Books) -> None:
    anna, ben = books.sign_up("anna"), books.sign_up("ben")
    books.move(ENDS + timedelta(minutes=10))
    gone, there = sorted([anna, ben])
    books.client.v1.customers.delete(books.stripe_ids[gone])
    books.line(gone, 1)
    books.line(there, 2)
    done = {item.customer_id: item for item in books.post()}
    assert done[there].error is None
    assert done[gone].error is not None
    assert books.ledger() == [(1, "pending"), (2, "sent")]
    again = books.post()
    assert [(item.customer_id, item.amount_cents) for item in again] == [(gone, 1)]
    assert books.sandbox.handled(ITEMS) == 1
