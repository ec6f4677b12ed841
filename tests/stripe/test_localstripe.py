"""Reading from somebody else's stand-in for Stripe: what it has of the API goes as with our own.

It has no prices, meters or clocks, and the shapes of an API of years ago.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clock import SystemClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.account import read_account
from apex_pipelines.stripe.backfill import backfill
from apex_pipelines.stripe.client import connect
from apex_pipelines.stripe.inbox import drain_inbox
from apex_pipelines.stripe.landing import count_objects
from apex_pipelines.stripe.sweep import sweep
from tests.conftest import free_port, stop, wait_until_up

HAS = ("product", "coupon", "customer", "charge", "refund", "invoice")


@pytest.fixture
def localstripe(settings: Settings, tmp_path: Any) -> Iterator[str]:
    """Its address; `settings` points at it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "localstripe", "--port", str(port), "--from-scratch"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    wait_until_up(f"{url}/js.stripe.com/v3/", process)
    settings.stripe_api_base = url
    settings.stripe_secret_key = "sk_test_" + "12345678"
    settings.stripe_requests_per_second = 1_000
    yield url
    stop(process)


def test_what_it_has_is_read_whole_and_then_by_its_events(
    localstripe: str, settings: Settings, engine: sa.Engine, warehouse: Client
) -> None:
    stripe = connect(settings).v1
    names = [stripe.customers.create({"name": f"customer {number}"}).id for number in range(120)]
    stripe.products.create({"name": "Indie", "type": "service"})
    with read_account(settings, SystemClock(), query_origin="tests") as account:
        report = backfill(account.engine, account.client, account.reader, types=HAS)
        assert report.problems == []
        assert report.objects["customer"] == 120
        stripe.customers.update(names[0], {"name": "changed"})
        stripe.customers.create({"name": "came later"})
        swept = sweep(account.engine, account.reader)
        drained = drain_inbox(account.engine, account.reader, account.changes)
    assert swept.missed > 0
    assert (drained.failed, drained.retrying) == (0, 0)
    counted = count_objects(warehouse)
    assert (counted["product"], counted["customer"]) == (1, 121)
    changed = "select payload from raw.stripe_objects final where id = {id:String}"
    assert '"changed"' in warehouse.query(changed, parameters={"id": names[0]}).result_rows[0][0]
