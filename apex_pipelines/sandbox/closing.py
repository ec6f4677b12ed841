"""A month of billing, lived through at the offline Stripe: use, meter events, invoice, payment, comparison.

Belongs here: the order in which time passes, and whose month it is. Does not belong here: any of the work;
each step calls the part of the platform that does it in earnest.

Some customers of the warehouse come to Stripe on the day on which their last ended period began. Time then
moves to the end of each period, where Stripe drafts an invoice, and the platform does within the hour what it
does every day: it sends the use and posts what that costs. An hour later Stripe finalises and collects.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client
from stripe import StripeClient

from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.sandbox.stripe.serving import secrets_of
from apex_pipelines.settings import Settings, child_environment
from apex_pipelines.stripe import client as stripe_client
from apex_pipelines.stripe.accounts import Account, Prices, accounts, create_customer, create_subscription
from apex_pipelines.stripe.bootstrap import bootstrap
from apex_pipelines.stripe.invoice_items import post_items
from apex_pipelines.stripe.landing import land_objects
from apex_pipelines.stripe.links import stripe_ids
from apex_pipelines.stripe.models import InvoiceLedgerEntry
from apex_pipelines.stripe.reconciliation import (
    BilledLine,
    Comparison,
    ask_stripe,
    billed_lines,
    comparisons,
)
from apex_pipelines.stripe.usage_sync import UsageSync

# Stripe leaves a draft open for an hour.
_GRACE = timedelta(hours=1)
_SECONDS_TO_START = 30
ACTIVE = SubscriptionStatus.ACTIVE
# Those with the most to bill; a period that ended today may still be open at Stripe.
_ENDED = """
select
    customer_id, assumeNotNull(subscription_id) as subscription_id, period_start, period_end,
    sumIf(amount_cents, line_type = 'overage') as overage_cents
from marts.invoice_lines
where
    is_final and subscription_id is not null
    and period_end > {now:DateTime64(6)} - interval 28 day
    and period_end < {now:DateTime64(6)} - interval 1 day
group by customer_id, subscription_id, period_start, period_end
having sumIf(amount_cents, line_type = 'subscription') > 0
order by overage_cents desc, customer_id
"""


@dataclass(frozen=True, slots=True)
class Month:
    """Whose period is closed; aware instants, the end exclusive."""

    customer_id: str
    subscription_id: str
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True)
class ClosedMonth:
    """What became of a period: money in minor units, as Stripe's invoice has it."""

    customer_id: str
    name: str
    plan_type: str
    period_start: datetime
    period_end: datetime
    base_cents: int
    overage_cents: int
    fee_cents: int
    total_cents: int
    currency: str
    status: str


@dataclass(slots=True)
class ClosingReport:
    """What the closing did.

    Attributes
    ----------
    meter_events : int
        Accepted by Stripe, in all runs.
    compared : int
        Quantities by customer, metric and period, and amounts by line, that were compared.
    differences : list
        Those that somebody must look at; empty when all is right.
    """

    months: list[ClosedMonth] = field(default_factory=list)
    meter_events: int = 0
    compared: int = 0
    differences: list[Comparison | BilledLine] = field(default_factory=list)


def close_months(
    settings: Settings,
    engine: sa.Engine,
    warehouse: Client,
    now: datetime,
    *,
    customers: int,
    say: Callable[[str], None] = lambda _line: None,
) -> ClosingReport:
    """Close the last ended period of some customers; safe to repeat and to kill, and then changes nothing.

    Parameters
    ----------
    now : datetime
        Where time stands in the end; the marts must have been built as of it.
    customers : int
        How many customers, those with the most overage first.
    """
    months = _choose(warehouse, engine, now, customers)
    if not months:
        return ClosingReport()
    with offline_stripe(settings) as (url, key):
        at_stripe = settings.model_copy(
            # The stand-in is ours alone, and bears any pace.
            update={"stripe_secret_key": key, "stripe_api_base": url, "stripe_requests_per_second": 1_000.0}
        )
        closing = _Closing(at_stripe, engine, warehouse, stripe_client.connect(at_stripe), url)
        closing.begin(months, say)
        for number, month in enumerate(sorted(months, key=lambda each: each.period_end), 1):
            closing.end_period(month)
            say(f"{number} of {len(months)} periods closed")
        closing.move(now)
        closing.post_items()
        return closing.report(months)


def _choose(warehouse: Client, engine: sa.Engine, now: datetime, limit: int) -> list[Month]:
    with engine.connect() as connection:
        active = {each.subscription_id for each in accounts(connection) if each.status == ACTIVE}
    rows = warehouse.query(_ENDED, parameters={"now": now}).named_results()
    ended = [
        Month(
            row["customer_id"], row["subscription_id"],
            row["period_start"].replace(tzinfo=UTC), row["period_end"].replace(tzinfo=UTC),
        )
        for row in rows
        if row["subscription_id"] in active
    ]  # fmt: skip
    return ended[:limit]


@contextmanager
def offline_stripe(settings: Settings) -> Iterator[tuple[str, str]]:
    """The stand-in in a process of its own, on the state that the last one left; its address and key."""
    folder = settings.home_path / "stripe-sandbox"
    url = f"http://127.0.0.1:{settings.stripe_sandbox_port}"
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "apex_pipelines.sandbox.stripe", "--folder", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(settings.stripe_sandbox_port)]
    with (settings.log_dir / "stripe-sandbox.log").open("ab") as log:
        process = subprocess.Popen(command, env=child_environment(settings), stdout=log, stderr=log)
    try:
        _wait_until_up(f"{url}/_sandbox/ping", process, Path(log.name))
        yield url, secrets_of(folder).key
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the offline Stripe did not start; its log is {log}")


class _Closing:
    """The platform and the stand-in, which live by one clock."""

    def __init__(
        self, settings: Settings, engine: sa.Engine, warehouse: Client, stripe: StripeClient, url: str
    ) -> None:
        self._engine = engine
        self._warehouse = warehouse
        self._stripe = stripe
        self._url = url
        self._prices = Prices(stripe)
        self._livemode = stripe_client.is_live(settings)
        self._concurrency = settings.stripe_concurrency
        self._clock = ManualClock(datetime.fromtimestamp(0, UTC))

    def move(self, now: datetime) -> None:
        """Both clocks to `now`; what falls due at Stripe until then happens. Never backwards."""
        standing = self._get("clock")
        if not standing["fixed"] or standing["now"] < int(now.timestamp()):
            answer = httpx.post(
                f"{self._url}/_sandbox/clock", json={"now": int(now.timestamp())}, timeout=120
            )
            answer.raise_for_status()
        self._clock.set(now)

    def begin(self, months: list[Month], say: Callable[[str], None]) -> None:
        """Each customer comes to Stripe when their period begins."""
        in_order = sorted(months, key=lambda month: month.period_start)
        with self._engine.connect() as connection:
            held = stripe_ids(connection, "subscription", livemode=self._livemode)
            known = {account.customer_id: account for account in accounts(connection)}
        for number, month in enumerate(in_order, 1):
            if month.subscription_id in held:
                continue
            self.move(month.period_start + timedelta(seconds=1))
            if number == 1:
                with self._engine.begin() as connection:
                    bootstrap(self._stripe, connection, self._clock.now(), livemode=self._livemode)
            self._subscribe(known[month.customer_id], month)
            say(f"{number} of {len(months)} customers subscribed")

    def _subscribe(self, account: Account, month: Month) -> None:
        then = replace(account, current_period_start=month.period_start, current_period_end=month.period_end)
        at, livemode = self._clock.now(), self._livemode
        customer = create_customer(self._stripe, self._engine, then, at, livemode=livemode)
        card = self._stripe.v1.payment_methods.attach("pm_card_visa", {"customer": customer})
        self._stripe.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": card.id}})
        create_subscription(self._stripe, self._engine, then, customer, self._prices, at, livemode=livemode)

    def end_period(self, month: Month) -> None:
        """Stripe drafts; the platform sends use and posts items within the hour; Stripe finalises."""
        self.move(month.period_end + _GRACE / 6)
        UsageSync(
            self._engine, self._warehouse, self._stripe, self._clock,
            livemode=self._livemode, concurrency=self._concurrency,
        ).run()  # fmt: skip
        self.post_items()
        self.move(month.period_end + 2 * _GRACE)

    def post_items(self) -> None:
        """What invoices lack; fees of a calendar month that has just ended wait for the next one."""
        self._land()
        post_items(self._stripe, self._engine, self._warehouse, self._clock.now(), livemode=self._livemode)

    def _land(self) -> None:
        """What posting items looks at: few objects, read anew each time."""
        v1, everything = self._stripe.v1, {"limit": 100}
        lists: list[Any] = [
            v1.customers.list(everything),  # type: ignore[arg-type]
            v1.subscriptions.list(everything | {"status": "all"}),  # type: ignore[arg-type]
            v1.prices.list(everything),  # type: ignore[arg-type]
            v1.billing.meters.list(everything),  # type: ignore[arg-type]
            v1.invoices.list(everything),  # type: ignore[arg-type]
        ]
        for listed in lists:
            land_objects(
                self._warehouse,
                [each.to_dict() for each in listed.auto_paging_iter()],
                fetched_at=self._clock.now(),
                api_version=stripe_client.API_VERSION,
                livemode=self._livemode,
            )

    def report(self, months: list[Month]) -> ClosingReport:
        """Compare everything, and tell of each month what its invoice says."""
        ask_stripe(
            self._engine, self._warehouse, self._stripe, self._clock,
            livemode=self._livemode, concurrency=self._concurrency,
        )  # fmt: skip
        compared = comparisons(self._warehouse, everything=True)
        lines = billed_lines(self._warehouse, everything=True)
        sides: list[Comparison | BilledLine] = [*compared, *lines]
        return ClosingReport(
            months=[self._closed(month) for month in months],
            meter_events=Counter(event["state"] for event in self._get("meter_events"))["counted"],
            compared=len(sides),
            differences=[each for each in sides if each.is_difference],
        )

    def _closed(self, month: Month) -> ClosedMonth:
        """The invoice that closed the month, its lines told apart by our ledger."""
        with self._engine.connect() as connection:
            account = accounts(connection, customer_id=month.customer_id)[-1]
            customer = stripe_ids(connection, "customer", livemode=self._livemode)[month.customer_id]
            entries = connection.execute(
                sa.select(InvoiceLedgerEntry.stripe_id, InvoiceLedgerEntry.line_type).where(
                    InvoiceLedgerEntry.customer_id == month.customer_id,
                    InvoiceLedgerEntry.livemode == self._livemode,
                )
            ).all()
        kinds = {entry.stripe_id: entry.line_type for entry in entries}
        end = int(month.period_end.timestamp())
        invoices = self._stripe.v1.invoices.list({"customer": customer, "limit": 100})
        invoice = next(each for each in invoices.auto_paging_iter() if each.period_end == end)
        cents: Counter[str] = Counter()
        for line in invoice.lines.auto_paging_iter():
            item = line.parent.invoice_item_details if line.parent else None
            cents[kinds[item.invoice_item] if item else "subscription"] += line.amount
        return ClosedMonth(
            month.customer_id, account.name, account.plan_type, month.period_start, month.period_end,
            cents["subscription"], cents["overage"], cents["platform_fee"],
            invoice.total, invoice.currency, invoice.status or "draft",
        )  # fmt: skip

    def _get(self, control: str) -> Any:
        return httpx.get(f"{self._url}/_sandbox/{control}", timeout=30).raise_for_status().json()
