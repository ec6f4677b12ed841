"""What tests of reading from Stripe share: the account, and what both stores hold of it.

Belongs here: asking and preparing. Does not belong here: any expectation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from stripe import StripeClient

from apex_pipelines.billing.store import NewSubscription, subscribe, sync_plans
from apex_pipelines.customers.store import NewCustomer, create_customer
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe import backfill as reading
from apex_pipelines.stripe.account import ReadAccount, read_account
from apex_pipelines.stripe.accounts import push
from apex_pipelines.stripe.backfill import BackfillReport
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.inbox import InboxReport, drain_inbox
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from apex_pipelines.stripe.sweep import sweep
from tests.conftest import PROJECT_ROOT
from tests.stripe.sandbox import Sandbox

START = datetime(2026, 6, 1, tzinfo=UTC)
# The model that all others of Stripe's objects stand on, as dbt renders it.
_NEWEST = (
    (PROJECT_ROOT / "dbt_project/models/staging/stripe/stg_stripe_objects.sql")
    .read_text()
    .replace("{{ source('raw', 'stripe_objects') }}", "raw.stripe_objects")
    .replace("{{ var('stripe_livemode') }}", "false")
)


@dataclass(frozen=True)
class Subscribed:
    """Ids of a customer and their subscription, ours and Stripe's."""

    customer_id: str
    subscription_id: str
    stripe_customer_id: str
    stripe_subscription_id: str


@dataclass
class StripeWorld:
    """An offline Stripe at `clock`'s time, and both stores that it is read into."""

    sandbox: Sandbox
    clock: ManualClock
    account: ReadAccount
    stripe: StripeClient

    @property
    def engine(self) -> sa.Engine:
        return self.account.engine

    def until(self, instant: datetime) -> None:
        """Let time go on, here and at Stripe."""
        self.clock.set(instant)
        self.sandbox.clock(instant)

    def backfill(self, *types: str, again: bool = False) -> BackfillReport:
        return reading.backfill(
            self.account.engine, self.account.client, self.account.reader, types=types or None, again=again
        )

    def drain(self) -> InboxReport:
        return drain_inbox(self.account.engine, self.account.reader, self.account.changes)

    def sweep(self) -> InboxReport:
        sweep(self.account.engine, self.account.reader)
        return self.drain()

    def landed(self, object_type: str) -> dict[str, Mapping[str, Any] | None]:
        """Newest state of each object in the warehouse, None for a deleted one."""
        rows = self.account.client.query(
            f"select object_id, payload, is_deleted from ({_NEWEST}) where object = {{object:String}}",
            parameters={"object": object_type},
        ).result_rows
        return {name: None if gone else msgspec.json.decode(payload) for name, payload, gone in rows}

    def at_stripe(self, object_type: str) -> dict[str, Mapping[str, Any]]:
        """Every object of a type, as Stripe lists it now."""
        kind = OBJECT_TYPES[object_type]
        pages = self.account.reader.pages(kind.path, kind.filters)
        return {one.id: msgspec.json.decode(one.payload) for page in pages for one in page.objects}

    def subscribed(self) -> Subscribed:
        """A customer who began a trial of Indie with us, and whom Stripe knows."""
        now = self.clock.now()
        with self.engine.begin() as connection:
            bootstrap(self.stripe, connection, now, livemode=False)
            customer_id = create_customer(connection, NewCustomer("Ada", "ada@example.com"), now)
            ours = subscribe(connection, NewSubscription(customer_id, "indie", now, trial=True), now)
        [pushed] = push(self.stripe, self.engine, now, livemode=False, customer_id=customer_id)
        assert pushed.stripe_subscription_id is not None
        return Subscribed(customer_id, ours, pushed.stripe_customer_id, pushed.stripe_subscription_id)

    def pay_by(self, who: Subscribed, test_card: str) -> None:
        """Make one of Stripe's test cards the customer's."""
        card = self.stripe.v1.payment_methods.attach(test_card, {"customer": who.stripe_customer_id})
        settings: Any = {"invoice_settings": {"default_payment_method": card.id}}
        self.stripe.v1.customers.update(who.stripe_customer_id, settings)

    def subscription(self, ours: str) -> dict[str, Any]:
        """Our row."""
        with self.engine.connect() as connection:
            query = sa.text("select * from subscriptions where id = :id")
            return dict(connection.execute(query, {"id": ours}).mappings().one())

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query), parameters)]


@pytest.fixture
def world(
    settings: Settings, clock: ManualClock, engine: sa.Engine, warehouse: Client, stripe_sandbox: Sandbox
) -> Iterator[StripeWorld]:
    """Stands at 2026-06-01 00:00 UTC; the plans are in the table, nothing is at Stripe."""
    with engine.begin() as connection:
        sync_plans(connection)
    stripe_sandbox.clock(clock.now())
    with read_account(settings, clock, query_origin="tests") as account:
        yield StripeWorld(stripe_sandbox, clock, account, stripe_sandbox.client())
