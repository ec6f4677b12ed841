"""Puts mails into the outbox: rows of `events`, written in the same transaction as their cause.

An `occurrence_key` names the cause (`segment:power_user:cus_…:2026-06-01`). The database keeps it unique, so
whatever is re-run or runs twice at once, a cause queues one mail.

Belongs here: queueing. Does not belong here: deciding who gets a mail (the domains), or sending it
(`queue.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

import sqlalchemy as sa

from apex_pipelines.messaging.mail_types import mail_type

_ROWS_PER_STATEMENT = 1_000

_INSERT = sa.text("""
    insert into events (event_type, customer_id, data, occurrence_key, priority, created_at, not_before,
                        outcome, processed_at, error_message)
    select r.event_type, r.customer_id, r.data, r.occurrence_key, r.priority, :now,
           coalesce(r.not_before, :now),
           case when r.skip_reason is not null then 'skipped' end,
           case when r.skip_reason is not null then cast(:now as timestamptz) end,
           r.skip_reason
    from jsonb_to_recordset(cast(:rows as jsonb)) as r(
        position int, event_type text, customer_id text, data jsonb, occurrence_key text, priority smallint,
        not_before timestamptz, skip_reason text)
    order by r.position
    on conflict (occurrence_key) do nothing
    returning occurrence_key
""")


@dataclass(frozen=True, slots=True)
class MailRequest:
    """One mail to queue.

    Attributes
    ----------
    customer_id : str or None
        None for mails to the operator.
    occurrence_key : str
        Names the cause; a second request with the same key is ignored for ever.
    not_before : datetime or None
        Earliest instant to send at; None means at once.
    skip_reason : str or None
        When set, the mail is recorded as skipped for this reason and never sent by itself.
    """

    email_type: str
    customer_id: str | None
    data: dict[str, Any]
    occurrence_key: str
    not_before: datetime | None = None
    skip_reason: str | None = None


def enqueue(
    connection: sa.Connection,
    *,
    email_type: str,
    customer_id: str | None,
    data: dict[str, Any],
    occurrence_key: str,
    now: datetime,
    not_before: datetime | None = None,
) -> bool:
    """Queue one mail in the caller's transaction.

    Returns
    -------
    bool
        False if this occurrence is queued (or was sent) already.

    Raises
    ------
    UnknownMailType, MissingMailData
        If the type does not exist, or `data` lacks what it requires.
    """
    request = MailRequest(email_type, customer_id, data, occurrence_key, not_before)
    return bool(enqueue_many(connection, [request], now=now))


def enqueue_many(
    connection: sa.Connection, requests: Iterable[MailRequest], *, now: datetime
) -> frozenset[str]:
    """Queue many mails in the caller's transaction, a thousand a statement.

    Returns
    -------
    frozenset of str
        Occurrence keys that were new; the others are queued already.

    Raises
    ------
    UnknownMailType, MissingMailData
        If a request is wrong; then nothing of this statement is queued.
    """
    queued: set[str] = set()
    for chunk in _chunks(requests, _ROWS_PER_STATEMENT):
        rows = json.dumps([_row(position, request) for position, request in enumerate(chunk)], default=_plain)
        queued.update(connection.scalars(_INSERT, {"rows": rows, "now": now}))
    return frozenset(queued)


def _row(position: int, request: MailRequest) -> dict[str, Any]:
    kind = mail_type(request.email_type)
    kind.check_data(request.data)
    return {
        "position": position,
        "event_type": kind.event_type,
        "customer_id": request.customer_id,
        "data": request.data,
        "occurrence_key": request.occurrence_key,
        "priority": kind.priority,
        "not_before": request.not_before,
        "skip_reason": request.skip_reason,
    }


def _plain(value: object) -> str:
    """Decimals and dates as text, exactly; JSON has neither."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"mail data can't hold {type(value).__name__}: {value!r}")


def _chunks(requests: Iterable[MailRequest], size: int) -> Iterator[Sequence[MailRequest]]:
    iterator = iter(requests)
    while chunk := list(islice(iterator, size)):
        yield chunk
