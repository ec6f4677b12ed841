"""Money that Stripe doesn't compute by itself, onto its invoices: exactly what is missing there, once.

Belongs here: the ledger of invoice items and posting them. Does not belong here: what is due, and what Stripe
charges by itself (`intermediate.int_stripe_lines`); sending use (`usage_sync.py`).

An item goes onto the customer's draft invoice, which Stripe leaves open for an hour after the period's end,
and else waits at Stripe for the next invoice. A line that changes later (a late event, a correction, a plan
that was changed inside the period) is made right by one more item, which may be a credit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from sqlalchemy.dialects.postgresql import insert
from stripe import InvalidRequestError, StripeClient, StripeError

from apex_pipelines.stripe.accounts import is_of_everybody
from apex_pipelines.stripe.links import stripe_ids
from apex_pipelines.stripe.models import InvoiceLedgerEntry, SentState

LEDGER = "stripe_invoice_ledger"
ENTRY_KEY = "apex_entry"
# Use may come 35 days late and periods last a month; a correction of older lines is made by hand.
LOOK_BACK = timedelta(days=100)

# That Stripe has not charged a month yet is no reason to charge it twice: its invoice may not be read yet.
_LINES = """
select
    customer_id, toString(line_type) as line_type, toString(metric_type) as metric_type, period_start,
    period_end, due_cents, charged_cents, toString(currency) as currency
from intermediate.int_stripe_lines
where
    charged_cents is not null and period_end <= {now:DateTime64(6)} and period_end > {since:DateTime64(6)}
    and {customer_id:String} in ('', customer_id)
order by customer_id, period_start, line_type, metric_type
"""


@dataclass(frozen=True, slots=True)
class LineKey:
    """A line of `marts.invoice_lines`; `metric_type` is empty for a subscription's price."""

    customer_id: str
    line_type: str
    metric_type: str
    period_start: datetime


@dataclass(frozen=True, slots=True)
class Line:
    """What is due for an ended period, and what Stripe charges of it by itself; in minor units."""

    key: LineKey
    period_end: datetime
    due_cents: int
    charged_cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An item to post; `amount_cents` is never zero, and negative for a credit."""

    line: Line
    amount_cents: int


@dataclass(frozen=True, slots=True)
class PostedItem:
    """An item, and where it is.

    Attributes
    ----------
    amount_cents : int
        In minor units; negative for a credit.
    invoice_id : str or None
        The draft that it stands on at Stripe; None: it waits for the customer's next invoice.
    error : str or None
        Why Stripe refused it; it is not at Stripe then, and tried again by the next call.
    """

    customer_id: str
    line_type: str
    metric_type: str
    period_start: datetime
    amount_cents: int
    currency: str
    invoice_id: str | None = None
    error: str | None = None


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

    Returns
    -------
    list of PostedItem
        One for each item that was missing or left by an earlier call; those with an `error` are pending.

    Raises
    ------
    stripe.StripeError
        When Stripe can't be reached or the key is wrong. Running it again goes on.
    """
    with engine.connect() as guard:  # its transaction holds the lock until the end
        guard.execute(sa.text("select pg_advisory_xact_lock(hashtext('apex.stripe.invoice_items'))"))
        before = _pending(engine, livemode=livemode, customer_id=customer_id)
        with engine.begin() as connection:
            customers = stripe_ids(connection, "customer", livemode=livemode)
            # The ledger itself and not its copy, which is of a moment ago.
            posted = _posted(connection, livemode=livemode)
            missing = [
                Difference(line, amount)
                for line in _lines(warehouse, now, customer_id)
                if (amount := line.due_cents - line.charged_cents - posted.get(line.key, 0))
                and line.key.customer_id in customers
            ]
            _write_entries(connection, missing, customers, now, livemode=livemode)
        # A call that was interrupted may have left its item at Stripe.
        tried = {entry.id for entry in before}
        done = []
        for entry in _pending(engine, livemode=livemode, customer_id=customer_id):
            item = _post(client, engine, entry, now, was_tried=entry.id in tried)
            done.append(item)
            on_progress(item)
    return done


def _lines(warehouse: Client, now: datetime, customer_id: str | None) -> list[Line]:
    parameters = {"now": now, "since": now - LOOK_BACK, "customer_id": customer_id or ""}
    return [
        Line(
            LineKey(row["customer_id"], row["line_type"], row["metric_type"], _utc(row["period_start"])),
            _utc(row["period_end"]),
            row["due_cents"],
            row["charged_cents"],
            row["currency"],
        )
        for row in warehouse.query(_LINES, parameters=parameters).named_results()
    ]


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
    invoice_id = error = None
    changes: dict[str, Any]
    try:
        found = _find(client, entry) if was_tried else None
        if found is None:
            found = _create(client, entry)
        invoice_id = found.invoice
        changes = {
            "state": str(SentState.SENT),
            "stripe_id": found.id,
            "settled_at": now,
            "error_message": None,
        }
    except StripeError as refusal:
        if is_of_everybody(refusal):
            raise
        # What is wrong with one customer must not keep the others waiting.
        error = str(refusal)
        changes = {"error_message": error}
    with engine.begin() as connection:
        connection.execute(
            sa.update(InvoiceLedgerEntry).where(InvoiceLedgerEntry.id == entry.id).values(**changes)
        )
    return PostedItem(
        entry.customer_id, entry.line_type, entry.metric_type, entry.period_start, entry.amount_cents,
        entry.currency, invoice_id, error,
    )  # fmt: skip


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
