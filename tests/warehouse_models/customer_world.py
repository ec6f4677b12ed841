"""A made-up company, seeded, for the check of the customer and operations marts.

Belongs here: what happened and when it became known. Does not belong here: anything computed from it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tests.warehouse_models.conftest import Models

BEGAN = datetime(2025, 12, 1, tzinfo=UTC)
DAYS = 190
PRICES = {"starter": 0, "indie": 9_900, "studio": 49_900, "enterprise": 99_900}
INCLUDED = {"starter": 1_000_000, "indie": 1_000_000, "studio": 10_000_000, "enterprise": 100_000_000}
USAGE = ("impressions", "api_calls", "data_transfer", "mediated_revenue")
NEVER = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    customer: str
    id: str
    metric: str
    quantity: int
    at: datetime
    accepted_at: datetime
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """Terms of a subscription from an instant on."""

    since: datetime
    plan: str
    status: str


@dataclass(frozen=True)
class Subscription:
    id: str
    customer: str
    started_at: datetime
    trial_end: datetime | None
    cancelled_at: datetime
    currency: str
    changes: tuple[Terms, ...]


@dataclass(frozen=True)
class Payment:
    customer: str
    invoice: str
    attempt: int
    status: str
    cents: int
    currency: str
    at: datetime


@dataclass(frozen=True)
class Mail:
    """`told` is the set of what the provider told of each message; the webhooks repeat and are shuffled."""

    id: int
    email_type: str
    queued_at: datetime
    outcome: str | None
    processed_at: datetime | None
    messages: tuple[tuple[str, str | None, frozenset[str]], ...]


@dataclass
class World:
    customers: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)
    mails: list[Mail] = field(default_factory=list)
    webhooks: list[tuple[str, str]] = field(default_factory=list)


def make_world(seed: int, customers: int) -> World:
    chance = random.Random(seed)
    world = World()
    for number in range(customers):
        name = f"cus_{number:02}"
        imported = chance.random() < 0.1
        created = BEGAN + timedelta(seconds=chance.randrange(DAYS * 86_400 - 4 * 86_400))
        world.customers[name] = ("import:old" if imported else "signup", created)
        if not imported:
            _subscribe(world, chance, name, created)
        _use(world, chance, name, BEGAN if imported else created)
    for number in range(1, 181):
        _mail(world, chance, number)
    world.webhooks += [
        ("email.delivered", json.dumps({"data": {"email_id": "of nobody"}})),
        ("email.opened", "{"),
    ]
    world.webhooks *= 2
    chance.shuffle(world.webhooks)
    return world


def _subscribe(world: World, chance: random.Random, name: str, created: datetime) -> None:
    currency = "eur" if chance.random() < 0.1 else "usd"
    start = created
    for number in range(2):
        stays = chance.random() < 0.6
        end = NEVER if stays else start + timedelta(hours=chance.randrange(1, 24 * 90))
        trial = start + timedelta(days=14) if chance.random() < 0.5 else None
        plan = chance.choice(["starter", "indie", "indie", "indie", "studio", "enterprise"])
        changes = [Terms(start, plan, "active")]
        for _ in range(chance.choice([0, 1, 2, 3])):
            changes.append(
                Terms(
                    start + timedelta(hours=chance.randrange(1, 24 * 180)),
                    chance.choice(["indie", "indie", "studio", plan]),
                    chance.choice(["active", "active", "past_due", "suspended"]),
                )
            )
        subscription = Subscription(
            f"sub_{name}_{number}", name, start, trial, end, currency,
            tuple(sorted((c for c in changes if c.since < end), key=lambda c: c.since)),
        )  # fmt: skip
        world.subscriptions.append(subscription)
        _pay(world, chance, subscription)
        if stays or chance.random() < 0.5:
            return
        # The next one begins at the very instant, the same day, or later.
        start = end + timedelta(hours=chance.choice([0, 0, 3, 500]))


def _pay(world: World, chance: random.Random, subscription: Subscription) -> None:
    due, number = subscription.trial_end or subscription.started_at, 0
    while due < min(subscription.cancelled_at, BEGAN + timedelta(days=DAYS)):
        number += 1
        plan = [c.plan for c in subscription.changes if c.since <= due][-1]
        for attempt, days in enumerate((0, 3, 4, 7), start=1):
            status = "succeeded" if chance.random() < (0.75 if attempt == 1 else 0.5) else "failed"
            world.payments.append(
                Payment(
                    subscription.customer, f"{subscription.id}_{number}", attempt, status, PRICES[plan],
                    subscription.currency, due + timedelta(days=days, seconds=chance.randrange(3_600)),
                )
            )  # fmt: skip
            if status == "succeeded":
                break
        due += timedelta(days=30)


def _use(world: World, chance: random.Random, name: str, since: datetime) -> None:
    level = chance.choice([0, 400, 4_000, 40_000, 300_000, 600_000])
    growth = chance.choice([0.985, 1.0, 1.0, 1.01, 1.03])
    first, last = since.date(), (BEGAN + timedelta(days=DAYS)).date()
    quiet_from = last if chance.random() < 0.7 else first + timedelta(days=chance.randrange(10, 150))
    mine: list[Event] = []

    def happen(metric: str, quantity: int, day: date, **metadata: str) -> None:
        at = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(
            milliseconds=chance.randrange(86_400_000)
        )
        late = timedelta(days=chance.randrange(35)) if chance.random() < 0.02 else timedelta(seconds=5)
        mine.append(Event(name, f"{name}-{len(mine)}", metric, quantity, at, at + late, metadata))

    for back in range((last - first).days):
        day = first + timedelta(days=back)
        if level and day < quiet_from and chance.random() < 0.8:
            happen("impressions", int(level * growth**back * chance.uniform(0.6, 1.4)), day)
            if chance.random() < 0.5:
                happen("api_calls", chance.randrange(0, 2 * level), day)
                happen("sdk_errors", chance.randrange(0, 5), day)
            if chance.random() < 0.05:
                happen("impressions", -chance.randrange(1, level), day)
        for metric, odds in (("console_logins", 0.1), ("doc_views", 0.07), ("support_tickets", 0.02)):
            if chance.random() < odds:
                happen(metric, 1, day)
        if chance.random() < 0.08:
            happen("feature_used", 1, day, feature=chance.choice("abcdefg"))
        if chance.random() < 0.01:
            happen("sdk_downloads", 1, day, platform=chance.choice(["ios", "android", "unity", "flutter"]))
        if chance.random() < 0.015:
            happen("nps_scores", chance.randrange(6, 11), day)
        if chance.random() < 0.003:
            happen("teammates_invited", 1, day)
    world.events += mine
    # Sent again, later and with another quantity: the first accepted counts.
    for event in chance.sample(mine, len(mine) // 20):
        again = event.accepted_at + timedelta(minutes=chance.randrange(1, 10_000))
        world.events.append(
            Event(name, event.id, event.metric, event.quantity + 7, event.at, again, event.metadata)
        )


def _mail(world: World, chance: random.Random, number: int) -> None:
    queued = BEGAN + timedelta(seconds=chance.randrange(DAYS * 86_400))
    outcome = chance.choice(["sent", "sent", "sent", "sent", "skipped", "failed", None])
    processed = None if outcome is None or chance.random() < 0.1 else queued + timedelta(minutes=1)
    messages = []
    for copy in range(chance.choice([1, 1, 1, 2]) if outcome == "sent" else 0):
        if chance.random() < 0.15:
            messages.append(("outbox", None, frozenset[str]()))
            continue
        message = f"message-{number}-{copy}"
        told = {
            kind
            for kind, odds in (
                ("email.sent", 1), ("email.delivery_delayed", 0.1), ("email.delivered", 0.8),
                ("email.bounced", 0.1), ("email.opened", 0.4), ("email.clicked", 0.2),
                ("email.complained", 0.05),
            )
            if chance.random() < odds
        }  # fmt: skip
        messages.append(("resend", message, frozenset(told)))
        body = json.dumps({"type": "x", "data": {"email_id": message, "subject": "Ihr Überblick"}})
        world.webhooks += [(kind, body) for kind in sorted(told) for _ in range(chance.choice([1, 1, 3]))]
    email_type = chance.choice(["welcome", "usage_alert_80", "daily_digest"])
    world.mails.append(Mail(number, email_type, queued, outcome, processed, tuple(messages)))


def tell(models: Models, world: World, before: datetime | None, now: datetime) -> None:
    """Bring the raw tables to what is known at `now`; telemetry appends, copies are made anew."""
    models.insert_events([
        {
            "customer_id": event.customer, "event_id": event.id, "metric_type": event.metric,
            "quantity": event.quantity, "event_time": event.at, "accepted_at": event.accepted_at,
            "metadata": json.dumps(event.metadata), "loaded_at": event.accepted_at, "batch_id": "b",
            "batch_row": row,
        }
        for row, event in enumerate(world.events)
        if event.accepted_at <= now and (before is None or event.accepted_at > before)
    ])  # fmt: skip
    history = [
        (subscription, terms) for subscription in world.subscriptions for terms in subscription.changes
    ]
    copies: dict[str, list[dict[str, Any]]] = {
        "customers": [
            {"id": name, "name": name, "email": "a@example.com", "source": source, "created_at": created}
            for name, (source, created) in world.customers.items()
            if created <= now
        ],
        "payments": [
            {"id": f"{p.invoice}_{p.attempt}", "customer_id": p.customer, "invoice_id": p.invoice,
             "attempt_number": p.attempt, "status": p.status, "amount_cents": p.cents, "currency": p.currency,
             "occurred_at": p.at}
            for p in world.payments if p.at <= now
        ],
        "subscriptions": [_subscription_row(s, now) for s in world.subscriptions if s.started_at <= now],
        "subscription_changes": [
            {"id": number, "subscription_id": s.id, "customer_id": s.customer, "effective_at": terms.since,
             "plan_type": terms.plan, "status": terms.status, "base_price_cents": PRICES[terms.plan],
             "currency": s.currency, "included_impressions": INCLUDED[terms.plan]}
            for number, (s, terms) in enumerate(history)
            if terms.since <= now
        ],
        "events": [
            {"id": m.id, "event_type": f"email.{m.email_type}", "priority": 50, "created_at": m.queued_at,
             "attempts": 1, "outcome": m.outcome, "processed_at": m.processed_at}
            for m in world.mails if m.queued_at <= now
        ],
        "email_log": [
            {"id": 10 * m.id + n, "event_id": m.id, "email_type": m.email_type, "recipient": "a@example.com",
             "subject": "s", "provider": provider, "provider_message_id": message, "sent_at": m.queued_at}
            for m in world.mails if m.queued_at <= now for n, (provider, message, _) in enumerate(m.messages)
        ],
        "webhook_inbox": [
            {"id": number, "provider": "resend", "event_id": f"evt_{number}", "event_type": kind,
             "payload": payload, "received_at": now}
            for number, (kind, payload) in enumerate(world.webhooks)
        ],
    }  # fmt: skip
    for table, rows in copies.items():
        models.client.command(f"truncate table raw.{table}")
        if rows:
            columns = [*rows[0], "copy_number", "snapshot_at"]
            values = [[*row.values(), 1, now] for row in rows]
            models.client.insert(f"raw.{table}", values, column_names=columns)


def _subscription_row(subscription: Subscription, now: datetime) -> dict[str, Any]:
    terms = [c for c in subscription.changes if c.since <= now][-1]
    is_trial = subscription.trial_end is not None and subscription.trial_end > now
    cancelled = subscription.cancelled_at if subscription.cancelled_at <= now else None
    return {
        "id": subscription.id,
        "customer_id": subscription.customer,
        "plan_type": terms.plan,
        "status": "canceled" if cancelled else "trialing" if is_trial else terms.status,
        "base_price_cents": PRICES[terms.plan],
        "currency": subscription.currency,
        "included_impressions": INCLUDED[terms.plan],
        "started_at": subscription.started_at,
        "trial_end": subscription.trial_end,
        "current_period_start": subscription.started_at,
        "current_period_end": subscription.started_at,
        "cancelled_at": cancelled,
    }
