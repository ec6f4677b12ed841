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

from apex_pipelines.billing.store import sync_plans
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe import backfill as reading
from apex_pipelines.stripe.account import ReadAccount, read_account
from apex_pipelines.stripe.backfill import BackfillReport
from apex_pipelines.stripe.inbox import InboxReport, drain_inbox
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from apex_pipelines.stripe.sweep import sweep
from tests.stripe.sandbox import Sandbox

START = datetime(2026, 6, 1, tzinfo=UTC)
# What `raw.stripe_objects` says of an object now.
_NEWEST = """
select id, argMax(if(is_deleted = 1, '', payload), (fetched_at, is_deleted)) as payload
from raw.stripe_objects final
where object = {object:String}
group by id
"""


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
        rows = self.account.client.query(_NEWEST, parameters={"object": object_type}).result_rows
        return {name: msgspec.json.decode(payload) if payload else None for name, payload in rows}

    def at_stripe(self, object_type: str) -> dict[str, Mapping[str, Any]]:
        """Every object of a type, as Stripe lists it now."""
        kind = OBJECT_TYPES[object_type]
        pages = self.account.reader.pages(kind.path, kind.filters)
        return {one.id: msgspec.json.decode(one.payload) for page in pages for one in page.objects}

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
