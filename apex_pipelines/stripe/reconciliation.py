"""Both sides of use compared: what was counted, the ledger, Stripe's meters and its invoices.

Belongs here: bringing the warehouse up to date with Stripe for it, and reading the differences. Does not
belong here: what a difference is (`marts.stripe_reconciliation`), mending one (`usage_sync.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import stripe
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.table_copy import copy_table
from apex_pipelines.stripe import links, meter_ledger
from apex_pipelines.stripe.client import API_VERSION
from apex_pipelines.stripe.landing import land_objects
from apex_pipelines.stripe.meter_summaries import land_summaries

# An invoice comes at the end of a period that may have ended when the oldest use that still counts happened.
_INVOICES_BACK = timedelta(days=75)
LEDGER = "stripe_meter_ledger"
ITEM_LEDGER = "stripe_invoice_ledger"
# Columns of the ledger that its copy has no need for: the day of slot_start.
LEDGER_LEFT_OUT = ("usage_date",)
_ROWS = """
    select
        customer_id, customer_name, toString(metric_type) as metric_type, period_start, period_end,
        counted_quantity, ledger_quantity, meter_quantity, invoice_quantity, too_late_quantity, late_quantity,
        cause, is_difference
    from marts.stripe_reconciliation
    where {customer_id:String} in ('', customer_id) and (cause != '' or {all:Bool})
    order by is_difference desc, customer_name, customer_id, period_start, metric_type
"""


_LINES = """
    select
        customer_id, customer_name, toString(line_type) as line_type, toString(metric_type) as metric_type,
        period_start, period_end, due_cents, charged_cents, posted_cents, invoiced_cents,
        toString(currency) as currency, toString(cause) as cause, is_difference
    from marts.stripe_invoice_reconciliation
    where {customer_id:String} in ('', customer_id) and (cause != '' or {all:Bool})
    order by is_difference desc, customer_name, customer_id, period_start, line_type, metric_type
"""


@dataclass(frozen=True, slots=True)
class BilledLine:
    """A line of `marts.invoice_lines` on both sides, in minor units of its currency.

    Attributes
    ----------
    charged_cents : int or None
        By lines of Stripe's own; None while there is none for the month.
    posted_cents, invoiced_cents : int
        By our items: what the ledger has, and what stands on invoices.
    cause : str
        A word of docs/stripe.md; empty when all agree.
    is_difference : bool
        Whether somebody must look.
    """

    customer_id: str
    customer_name: str
    line_type: str
    metric_type: str
    period_start: datetime
    period_end: datetime
    due_cents: int
    charged_cents: int | None
    posted_cents: int
    invoiced_cents: int
    currency: str
    cause: str
    is_difference: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A customer, metric and billing period on both sides, in storage units.

    Attributes
    ----------
    invoice_quantity : int or None
        None while there is no finalised invoice of the period.
    cause : str
        A word of docs/stripe.md; empty when all agree.
    is_difference : bool
        Whether somebody must look.
    """

    customer_id: str
    customer_name: str
    metric_type: str
    period_start: datetime
    period_end: datetime
    counted_quantity: int
    ledger_quantity: int
    meter_quantity: int
    invoice_quantity: int | None
    too_late_quantity: int
    late_quantity: int
    cause: str
    is_difference: bool


def billed_lines(
    warehouse: Client, *, customer_id: str | None = None, everything: bool = False
) -> list[BilledLine]:
    """Lines with a cause to tell of, differences first; with `everything`, those that agree too."""
    parameters = {"customer_id": customer_id or "", "all": everything}
    return [
        BilledLine(**_with_zone(row))
        for row in warehouse.query(_LINES, parameters=parameters).named_results()
    ]


def comparisons(
    warehouse: Client, *, customer_id: str | None = None, everything: bool = False
) -> list[Comparison]:
    """What has a cause to tell of, differences first; with `everything`, what agrees too."""
    parameters = {"customer_id": customer_id or "", "all": everything}
    return [
        Comparison(**_with_zone(row)) for row in warehouse.query(_ROWS, parameters=parameters).named_results()
    ]


def _with_zone(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "period_start": row["period_start"].replace(tzinfo=UTC),
        "period_end": row["period_end"].replace(tzinfo=UTC),
        "is_difference": bool(row["is_difference"]),
    }


def ask_stripe(
    engine: sa.Engine,
    warehouse: Client,
    client: stripe.StripeClient,
    clock: Clock,
    *,
    livemode: bool,
    customer_id: str | None = None,
    concurrency: int = 8,
    lock_seconds: int = 60,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Bring meters' sums, invoices and the ledger to the warehouse as they are now.

    Raises
    ------
    AnotherSyncRuns
        If use is being sent all the while: nothing could be compared meanwhile.
    """
    with meter_ledger.alone(engine, livemode=livemode, wait_seconds=lock_seconds):
        land_summaries(
            engine, warehouse, client, clock,
            livemode=livemode, customer_id=customer_id, concurrency=concurrency, wait=wait,
        )  # fmt: skip
        copy_table(engine, warehouse, LEDGER, clock.now(), left_out=LEDGER_LEFT_OUT)
        copy_table(engine, warehouse, ITEM_LEDGER, clock.now())
    with engine.connect() as connection:
        linked = links.customer_links(connection, livemode=livemode)
    stripe_customer_id = linked[customer_id].stripe_id if customer_id in linked else None
    _land_invoices(warehouse, client, clock.now(), livemode=livemode, stripe_customer_id=stripe_customer_id)


def _land_invoices(
    warehouse: Client,
    client: stripe.StripeClient,
    now: datetime,
    *,
    livemode: bool,
    stripe_customer_id: str | None,
) -> None:
    wanted: Any = {"created": {"gte": int((now - _INVOICES_BACK).timestamp())}, "limit": 100}
    if stripe_customer_id is not None:
        wanted["customer"] = stripe_customer_id
    invoices = list(client.v1.invoices.list(wanted).auto_paging_iter())
    lines = [
        line
        for invoice in invoices
        if invoice.lines.has_more and invoice.id
        for line in client.v1.invoices.line_items.list(invoice.id, {"limit": 100}).auto_paging_iter()
    ]
    # The lines of an invoice before the invoice itself.
    for objects in (lines, invoices):
        land_objects(
            warehouse, [each.to_dict() for each in objects],
            fetched_at=now, api_version=API_VERSION, livemode=livemode,
        )  # fmt: skip
