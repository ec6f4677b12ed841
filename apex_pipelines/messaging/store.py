"""SQL of the mail queue: claiming, what the rules need to know, recording what happened.

Every function works inside the caller's transaction. Belongs here: statements. Does not belong here: rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from apex_pipelines.messaging.models import EmailLog
from apex_pipelines.messaging.rules import REPEAT_WINDOW


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """A pending mail whose row this transaction has locked."""

    id: int
    event_type: str
    customer_id: str | None
    data: dict[str, Any]
    created_at: datetime
    attempts: int
    outcome: str | None
    error_message: str | None

    @property
    def is_resend(self) -> bool:
        """An operator set `processed_at` back to NULL: the event still carries its earlier outcome."""
        return self.outcome is not None


@dataclass(frozen=True, slots=True)
class CustomerAddress:
    email: str
    name: str
    marketing_consent: bool
    canceled: bool


@dataclass(frozen=True, slots=True)
class EventUpdate:
    """New state of one event; `outcome` None leaves it pending (and keeps an earlier outcome in place)."""

    id: int
    outcome: str | None
    error_message: str | None
    attempts: int
    not_before: datetime | None = None


# A reset row (no error message, but traces of an earlier try) is due at once, whatever its back-off said.
_CLAIM = sa.text("""
    select id, event_type, customer_id, data, created_at, attempts, outcome, error_message
    from events
    where processed_at is null
      and event_type like 'email.%'
      and (not_before <= :now or (error_message is null and (attempts > 0 or outcome is not null)))
      and (cast(:only_id as bigint) is null or id = :only_id)
    order by priority, not_before, id
    limit :limit
    for update skip locked
""")

_ADDRESSES = sa.text("""
    select id, email, name, marketing_consent,
           exists (select from subscriptions s where s.customer_id = c.id)
           and not exists (select from subscriptions s where s.customer_id = c.id and s.status <> 'canceled')
               as canceled
    from customers c
    where id = any(cast(:ids as text[]))
""")

# Sorted, so that two workers never wait for each other's locks in a circle.
_LOCK = sa.text("""
    select pg_advisory_xact_lock(k)
    from (
        select distinct hashtextextended('email:' || u, 0) as k
        from unnest(cast(:keys as text[])) u
        order by 1
    ) s
""")

# Two halves, because only an equality reaches the index on (customer_id, email_type, sent_at).
_LAST_SENT = sa.text("""
    select l.email_type, l.customer_id, null as recipient, max(l.sent_at) as sent_at
    from unnest(cast(:types as text[]), cast(:customers as text[])) as w(email_type, customer_id)
    join email_log l on l.customer_id = w.customer_id and l.email_type = w.email_type and l.sent_at > :since
    group by 1, 2
    union all
    select l.email_type, null, lower(l.recipient), max(l.sent_at)
    from email_log l
    where l.customer_id is null and l.email_type = any(cast(:without as text[])) and l.sent_at > :since
    group by 1, 3
""")

_UPDATE = sa.text("""
    update events e
    set outcome = coalesce(u.outcome, e.outcome),
        processed_at = case when u.outcome is not null then cast(:now as timestamptz) end,
        error_message = u.error_message,
        attempts = u.attempts,
        not_before = coalesce(u.not_before, e.not_before)
    from unnest(cast(:ids as bigint[]), cast(:outcomes as text[]), cast(:errors as text[]),
                cast(:attempts as int[]), cast(:not_before as timestamptz[]))
         as u(id, outcome, error_message, attempts, not_before)
    where e.id = u.id
""")


def claim(connection: sa.Connection, *, now: datetime, limit: int, only_id: int | None) -> list[ClaimedEvent]:
    """Lock up to `limit` due mails, most urgent first, leaving alone what other workers hold."""
    rows = connection.execute(_CLAIM, {"now": now, "limit": limit, "only_id": only_id})
    return [ClaimedEvent(**row._mapping) for row in rows]


def customer_addresses(connection: sa.Connection, ids: Collection[str]) -> dict[str, CustomerAddress]:
    """Address, name and consent of customers, by id."""
    if not ids:
        return {}
    rows = connection.execute(_ADDRESSES, {"ids": list(ids)})
    return {row.id: CustomerAddress(row.email, row.name, row.marketing_consent, row.canceled) for row in rows}


def suppressions(connection: sa.Connection, addresses: Collection[str]) -> dict[str, set[str]]:
    """Reasons of suppression by lower-case address."""
    found: dict[str, set[str]] = {}
    rows = connection.execute(
        sa.text(
            "select lower(email) as email, reason from suppressions where lower(email) = any(:addresses)"
        ),
        {"addresses": sorted({address.lower() for address in addresses})},
    )
    for row in rows:
        found.setdefault(row.email, set()).add(row.reason)
    return found


def lock_repeat_keys(connection: sa.Connection, keys: Collection[str]) -> None:
    """Let nobody else decide about the same mail types and recipients until this transaction ends.

    Read `last_sent` only after this: then it has seen what the transaction that held the lock has sent.
    """
    connection.execute(_LOCK, {"keys": sorted(set(keys))})


def last_sent(
    connection: sa.Connection, pairs: Collection[tuple[str, str | None]], *, now: datetime
) -> dict[tuple[str, str], datetime]:
    """When each (mail type, customer or None) was last sent within 24 h.

    Returns
    -------
    dict
        (mail type, customer id, or lower-case address where there is no customer) to the instant, UTC.
    """
    of_customers = sorted((kind, customer) for kind, customer in pairs if customer is not None)
    rows = connection.execute(
        _LAST_SENT,
        {
            "types": [kind for kind, _ in of_customers],
            "customers": [customer for _, customer in of_customers],
            "without": sorted({kind for kind, customer in pairs if customer is None}),
            "since": now - REPEAT_WINDOW,
        },
    )
    return {(row.email_type, row.customer_id or row.recipient): row.sent_at for row in rows}


def times_sent(connection: sa.Connection, event_ids: Sequence[int]) -> dict[int, int]:
    """How often each event was sent before; absent means never."""
    rows = connection.execute(
        sa.select(EmailLog.event_id, sa.func.count())
        .where(EmailLog.event_id.in_(event_ids))
        .group_by(EmailLog.event_id)
    )
    return {row[0]: row[1] for row in rows}


def lock_quota(connection: sa.Connection) -> None:
    """Let nobody else count or use up the daily quota until this transaction ends."""
    connection.execute(sa.text("select pg_advisory_xact_lock(hashtextextended('email quota', 0))"))


def sent_today(connection: sa.Connection, now: datetime) -> int:
    """Mails handed over on the UTC day of `now`."""
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC)
    count = connection.scalar(
        sa.select(sa.func.count()).where(
            EmailLog.sent_at >= midnight, EmailLog.sent_at < midnight + timedelta(days=1)
        )
    )
    return int(count or 0)


def record_sent(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to `email_log`."""
    if rows:
        connection.execute(sa.insert(EmailLog), list(rows))


def record_updates(connection: sa.Connection, updates: Sequence[EventUpdate], now: datetime) -> None:
    """Write the new state of events."""
    if updates:
        connection.execute(
            _UPDATE,
            {
                "now": now,
                "ids": [update.id for update in updates],
                "outcomes": [update.outcome for update in updates],
                "errors": [update.error_message for update in updates],
                "attempts": [update.attempts for update in updates],
                "not_before": [update.not_before for update in updates],
            },
        )
