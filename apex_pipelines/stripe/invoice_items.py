"""Money that Stripe doesn't compute by itself, onto its invoices: exactly what is missing there, once.

Belongs here: the difference between `marts.invoice_lines` and what Stripe's invoices say, its ledger, and
posting it. Does not belong here: what anything costs (the marts decide), sending use (`usage_sync.py`).

An item goes onto the customer's draft invoice, which Stripe leaves open for an hour after the period's end,
and else waits at Stripe for the next invoice. A line that changes later (a late event, a correction, a plan
that was changed inside the period) is made right by one more item, which may be a credit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from sqlalchemy.dialects.postgresql import insert
from stripe import InvalidRequestError, StripeClient

from apex_pipelines.stripe.links import stripe_ids
from apex_pipelines.stripe.models import InvoiceLedgerEntry, SentState

# Use may come 35 days late and periods last a month; a correction of older lines is made by hand.
LOOK_BACK = timedelta(days=100)
ENTRY_KEY = "apex_entry"
LEDGER = "stripe_invoice_ledger"

_DUE = """
select
    customer_id, ifNull(subscription_id, '') as subscription_id, toString(line_type) as line_type,
    ifNull(toString(metric_type), '') as metric_type, period_start, period_end, due_at, quantity,
    amount_cents, toString(currency) as currency
from marts.invoice_lines
where is_final and due_at > {since:DateTime64(6)} and period_end <= {now:DateTime64(6)}
order by customer_id, period_start, line_type, metric_type
"""
# What Stripe charges by itself: the price of each month, and prorations of somebody's change at Stripe.
_NATIVE = """
select
    line.subscription_id as subscription_id, line.period_start as period_start,
    sum(amount_cents) as amount_cents
from staging.stg_stripe_invoice_lines as line
inner join staging.stg_stripe_invoices as invoice on line.invoice_id = invoice.invoice_id
where
    line.parent_type = 'subscription_item_details' and invoice.status != 'void'
    and line.period_start > {since:DateTime64(6)}
    -- A metered line says how much was used and costs nothing, and is no sign that the month was charged.
    and line.price_id in (select price_id from staging.stg_stripe_prices where usage_type = 'licensed')
group by subscription_id, period_start
"""
_STARTED = """
select subscription_id, stripe_customer_id, started_at
from staging.stg_stripe_subscriptions
where started_at is not null
"""


@dataclass(frozen=True, slots=True)
class LineKey:
    """A line of `marts.invoice_lines`; `metric_type` is empty for a subscription's price."""

    customer_id: str
    line_type: str
    metric_type: str
    period_start: datetime


@dataclass(frozen=True, slots=True)
class DueLine:
    """What a customer owes for one line; `quantity` in storage units, amount in minor units."""

    key: LineKey
    subscription_id: str
    period_end: datetime
    due_at: datetime
    quantity: int | None
    amount_cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class NativeCharge:
    """What Stripe's own lines of one subscription charge, by the start of what they are for."""

    period_start: datetime
    amount_cents: int


@dataclass(frozen=True, slots=True)
class Difference:
    """An item to post; `amount_cents` is never zero, and negative for a credit."""

    line: DueLine
    amount_cents: int


@dataclass(frozen=True, slots=True)
class PostedItem:
    """An item at Stripe, on the draft `invoice_id` or, when that is None, waiting for the next invoice."""

    customer_id: str
    line_type: str
    metric_type: str
    amount_cents: int
    currency: str
    invoice_id: str | None


def differences(
    due: Iterable[DueLine],
    native: Mapping[str, Iterable[NativeCharge]],
    posted: Mapping[LineKey, int],
    billed_from: Mapping[str, datetime],
    customer_since: Mapping[str, datetime],
) -> list[Difference]:
    """What is missing on Stripe's invoices, or too much.

    Parameters
    ----------
    due : iterable
        Lines of ended periods.
    native : mapping
        By our subscription, what Stripe charges by itself. A subscription's price is compared only where
        Stripe has charged something for the period: that it has not yet is no reason to charge it twice.
    posted : mapping
        By line, the sum of the ledger's entries that were not rejected, in minor units.
    billed_from : mapping
        By our subscription, since when it is at Stripe; a period that began before was billed elsewhere.
    customer_since : mapping
        By our customer, since when any of their subscriptions is; fees due before were billed elsewhere.
    """
    found = []
    for line in due:
        charged = 0
        if line.key.line_type == "platform_fee":
            start = customer_since.get(line.key.customer_id)
            if start is None or line.due_at <= start:
                continue
        else:
            start = billed_from.get(line.subscription_id)
            if start is None or line.key.period_start < start:
                continue
        if line.key.line_type == "subscription":
            inside = [
                charge.amount_cents
                for charge in native.get(line.subscription_id, ())
                if line.key.period_start <= charge.period_start < line.period_end
            ]
            if not inside:
                continue
            charged = sum(inside)
        missing = line.amount_cents - charged - posted.get(line.key, 0)
        if missing:
            found.append(Difference(line, missing))
    return found


def post_items(
    client: StripeClient,
    engine: sa.Engine,
    warehouse: Client,
    now: datetime,
    *,
    livemode: bool,
    customer_id: str | None = None,
    on_progress: Callable[[PostedItem], None] = lambda _done: None,
) -> list[PostedItem]:
    """Post what is missing, each entry of the ledger written before it goes out; safe to repeat and to kill.

    The marts and the copies of Stripe's objects must be up to date. Of two calls at once the second waits.

    Raises
    ------
    stripe.StripeError
        As Stripe answers. What was posted is in the ledger; running it again goes on.
    """
    with engine.connect() as guard:  # its transaction holds the lock until the end
        guard.execute(sa.text("select pg_advisory_xact_lock(hashtext('apex.stripe.invoice_items'))"))
        before = _pending(engine, livemode=livemode, customer_id=customer_id)
        with engine.begin() as connection:
            customers = stripe_ids(connection, "customer", livemode=livemode)
            subscriptions = stripe_ids(connection, "subscription", livemode=livemode)
            posted = _posted(connection, livemode=livemode)
            due = [
                line
                for line in _due(warehouse, now)
                if line.key.customer_id in customers and customer_id in (None, line.key.customer_id)
            ]
            native = _native(warehouse, now, subscriptions)
            billed_from, customer_since = _starts(warehouse, customers, subscriptions)
            missing = differences(due, native, posted, billed_from, customer_since)
            _write_entries(connection, missing, customers, now, livemode=livemode)
        # A call that was interrupted may have left its item at Stripe.
        tried = {entry.id for entry in before}
        done = []
        for entry in _pending(engine, livemode=livemode, customer_id=customer_id):
            item = _post(client, engine, entry, now, was_tried=entry.id in tried)
            done.append(item)
            on_progress(item)
    return done


def _due(warehouse: Client, now: datetime) -> list[DueLine]:
    rows = warehouse.query(_DUE, parameters={"since": now - LOOK_BACK, "now": now}).named_results()
    return [
        DueLine(
            LineKey(row["customer_id"], row["line_type"], row["metric_type"], _utc(row["period_start"])),
            row["subscription_id"],
            _utc(row["period_end"]),
            _utc(row["due_at"]),
            row["quantity"],
            row["amount_cents"],
            row["currency"],
        )
        for row in rows
    ]


def _native(
    warehouse: Client, now: datetime, subscriptions: Mapping[str, str]
) -> dict[str, list[NativeCharge]]:
    ours = {stripe_id: local for local, stripe_id in subscriptions.items()}
    native: dict[str, list[NativeCharge]] = defaultdict(list)
    # A period that is looked at may have begun a month before the line fell due.
    since = now - LOOK_BACK - timedelta(days=31)
    for row in warehouse.query(_NATIVE, parameters={"since": since}).named_results():
        if row["subscription_id"] in ours:
            charge = NativeCharge(_utc(row["period_start"]), row["amount_cents"])
            native[ours[row["subscription_id"]]].append(charge)
    return native


def _starts(
    warehouse: Client, customers: Mapping[str, str], subscriptions: Mapping[str, str]
) -> tuple[dict[str, datetime], dict[str, datetime]]:
    """Since when Stripe has each of our subscriptions, and each of our customers with one."""
    our_subscription = {stripe_id: local for local, stripe_id in subscriptions.items()}
    our_customer = {stripe_id: local for local, stripe_id in customers.items()}
    by_subscription: dict[str, datetime] = {}
    by_customer: dict[str, datetime] = {}
    for subscription, customer, at in warehouse.query(_STARTED).result_rows:
        if subscription in our_subscription and customer in our_customer:
            start, local = _utc(at), our_customer[customer]
            by_subscription[our_subscription[subscription]] = start
            by_customer[local] = min(start, by_customer.get(local, start))
    return by_subscription, by_customer


def _posted(connection: sa.Connection, *, livemode: bool) -> dict[LineKey, int]:
    entry = InvoiceLedgerEntry
    key = (entry.customer_id, entry.line_type, entry.metric_type, entry.period_start)
    query = (
        sa.select(*key, sa.func.sum(entry.amount_cents))
        .where(entry.livemode == livemode, entry.state != SentState.REJECTED)
        .group_by(*key)
    )
    return {
        LineKey(customer, line_type, metric, start.astimezone(UTC)): int(total)
        for customer, line_type, metric, start, total in connection.execute(query)
    }


def _write_entries(
    connection: sa.Connection,
    missing: list[Difference],
    customers: Mapping[str, str],
    now: datetime,
    *,
    livemode: bool,
) -> None:
    entry = InvoiceLedgerEntry
    for each in missing:
        key = each.line.key
        number = connection.scalar(
            sa.select(sa.func.coalesce(sa.func.max(entry.number), 0) + 1).where(
                entry.livemode == livemode,
                entry.customer_id == key.customer_id,
                entry.line_type == key.line_type,
                entry.metric_type == key.metric_type,
                entry.period_start == key.period_start,
            )
        )
        connection.execute(
            insert(entry).values(
                livemode=livemode,
                customer_id=key.customer_id,
                stripe_customer_id=customers[key.customer_id],
                line_type=key.line_type,
                metric_type=key.metric_type,
                period_start=key.period_start,
                period_end=each.line.period_end,
                number=number,
                amount_cents=each.amount_cents,
                currency=each.line.currency,
                state=str(SentState.PENDING),
                created_at=now,
            )
        )


def _pending(engine: sa.Engine, *, livemode: bool, customer_id: str | None) -> list[sa.Row[Any]]:
    entry = InvoiceLedgerEntry
    query = sa.select(entry.__table__).where(entry.livemode == livemode, entry.state == SentState.PENDING)
    if customer_id is not None:
        query = query.where(entry.customer_id == customer_id)
    with engine.connect() as connection:
        return list(connection.execute(query.order_by(entry.id)))


def _post(
    client: StripeClient, engine: sa.Engine, entry: sa.Row[Any], now: datetime, *, was_tried: bool
) -> PostedItem:
    found = _find(client, entry) if was_tried else None
    if found is None:
        found = _create(client, entry)
    with engine.begin() as connection:
        connection.execute(
            sa.update(InvoiceLedgerEntry)
            .where(InvoiceLedgerEntry.id == entry.id)
            .values(state=str(SentState.SENT), stripe_id=found.id, settled_at=now)
        )
    return PostedItem(
        entry.customer_id,
        entry.line_type,
        entry.metric_type,
        entry.amount_cents,
        entry.currency,
        found.invoice,
    )


def _create(client: StripeClient, entry: sa.Row[Any]) -> Any:
    params: Any = {
        "customer": entry.stripe_customer_id,
        "amount": entry.amount_cents,
        "currency": entry.currency,
        "description": _description(entry),
        "period": {"start": int(entry.period_start.timestamp()), "end": int(entry.period_end.timestamp())},
        "metadata": {ENTRY_KEY: str(entry.id)},
    }
    key = f"invoice-item:{entry.id}"
    draft = _draft(client, entry.stripe_customer_id)
    if draft is not None:
        onto_draft: Any = params | {"invoice": draft}
        try:
            return client.v1.invoice_items.create(onto_draft, {"idempotency_key": f"{key}:{draft}"})
        except InvalidRequestError as error:
            # It was finalised meanwhile: the next invoice takes the item.
            if error.code not in ("invoice_not_editable", "resource_missing"):
                raise
    return client.v1.invoice_items.create(params, {"idempotency_key": key})


def _find(client: StripeClient, entry: sa.Row[Any]) -> Any:
    """The item that an earlier try left at Stripe, or None."""
    items = client.v1.invoice_items.list({"customer": entry.stripe_customer_id, "limit": 100})
    for item in items.auto_paging_iter():
        metadata = item.metadata.to_dict() if item.metadata else {}
        if metadata.get(ENTRY_KEY) == str(entry.id):
            return item
    return None


def _draft(client: StripeClient, stripe_customer_id: str) -> str | None:
    """The customer's open draft that Stripe will finalise by itself, the newest."""
    drafts = client.v1.invoices.list({"customer": stripe_customer_id, "status": "draft", "limit": 100})
    for invoice in drafts.data:
        if invoice.auto_advance:
            return invoice.id
    return None


def _description(entry: sa.Row[Any]) -> str:
    last = entry.period_end - timedelta(microseconds=1)
    span = f"{entry.period_start:%-d %b %Y} to {last:%-d %b %Y}"
    what = {
        "platform_fee": "Platform fee",
        "overage": f"{entry.metric_type.replace('_', ' ').capitalize()} beyond what is included",
        "subscription": "Subscription, adjustment",
    }[entry.line_type]
    return f"{what}{', correction' if entry.number > 1 else ''} ({span})"


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
