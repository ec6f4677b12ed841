"""Applying a mapping: from a record to the events it stands for, with ids that never change.

An event's id is made of the mapping's name, the record's content, how many identical records stood before it,
and the metric. So a file that is sent twice, sent longer, or sorted otherwise gives the same ids, while two
equal lines count as two.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache

from apex_pipelines.customers.store import is_email
from apex_pipelines.importing.mapping import Mapping, Time, holds
from apex_pipelines.importing.readers import Record
from apex_pipelines.metering import quantity
from apex_pipelines.platform import catalogue
from apex_pipelines.platform.ingest_client import ClientEvent

# Fixed for ever: another namespace would count every imported file again.
_EVENT_NAMESPACE = uuid.UUID("2c1d7a54-93d5-5f0e-8b1a-6a0a2c6f4e90")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_CUSTOMER_CHARACTERS = 512
# Holds every number that `_number` lets through, so that shifting the point rounds nothing.
_EXACT = Context(prec=100)
# No underscores, no "NaN", no other scripts' digits: a number as people and exports write it.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


class BadRecord(ValueError):
    """A record can't become events; the message says which column and why."""


@dataclass(frozen=True, slots=True)
class MappedEvent:
    """An event ready to send, and its quantity in storage units for the report's totals."""

    event: ClientEvent
    stored: int


@dataclass(frozen=True, slots=True)
class MappedRecord:
    """What one record stands for. `at` is an aware UTC instant."""

    customer: str
    email: str | None
    at: datetime
    events: tuple[MappedEvent, ...]


def event_id(mapping_name: str, content: str, occurrence: int, metric_type: str) -> str:
    """Id of the event that a record makes for one metric; `occurrence` counts identical records from 1."""
    return str(uuid.uuid5(_EVENT_NAMESPACE, f"{mapping_name}\x1e{metric_type}\x1e{occurrence}\x1e{content}"))


def map_record(mapping: Mapping, record: Record, occurrence: int) -> MappedRecord:
    """Apply a mapping to one record. A record makes all its events or none.

    Raises
    ------
    BadRecord
        If a column is missing or holds what it can't.
    """
    fields = record.fields
    customer = _required(fields, mapping.customer).strip()
    if not customer or len(customer) > _MAX_CUSTOMER_CHARACTERS or "\0" in customer:
        raise BadRecord(
            f"{mapping.customer}: a customer's name has 1 to {_MAX_CUSTOMER_CHARACTERS} characters"
        )
    email = fields.get(mapping.customers.email_column or "", "").strip() or None
    if email is not None and not is_email(email):
        raise BadRecord(f"{mapping.customers.email_column}: {email[:80]!r} is no e-mail address")
    at = _parse_time(mapping.time, _required(fields, mapping.time.column))
    timestamp = at.isoformat().replace("+00:00", "Z")
    shared = {key: fields[column] for key, column in mapping.metadata.items() if fields.get(column)}
    events = []
    for metric in mapping.metrics:
        if metric.when is not None:
            value = fields.get(metric.when.column, "")
            try:
                if not holds(metric.when, value):
                    continue
            except InvalidOperation as error:
                raise BadRecord(f"{metric.when.column}: {value[:80]!r} is no number") from error
        if metric.column is None:
            amount = Decimal(metric.constant or 0)
        else:
            text = fields.get(metric.column, "").strip()
            if text in metric.absent:
                continue
            amount = _number(metric.column, text, metric.exponent)
        try:
            stored = quantity.to_storage(amount, catalogue.metrics()[metric.metric_type].scale)
        except ValueError as error:
            raise BadRecord(f"{metric.column}: {amount} {metric.metric_type}: {error}") from error
        events.append(
            MappedEvent(
                ClientEvent(
                    event_id=event_id(mapping.name, record.content, occurrence, metric.metric_type),
                    metric_type=metric.metric_type,
                    quantity=f"{amount:f}",
                    timestamp=timestamp,
                    metadata={**shared, **metric.metadata} or None,
                ),
                stored,
            )
        )
    return MappedRecord(customer, email, at, tuple(events))


def _required(fields: dict[str, str], column: str) -> str:
    try:
        return fields[column]
    except KeyError:
        raise BadRecord(f"{column}: missing") from None


def _number(column: str, text: str, exponent: int) -> Decimal:
    if _NUMBER.fullmatch(text) is None or len(text) > 60:
        raise BadRecord(f"{column}: {text[:80]!r} is no number")
    value = Decimal(text)
    if value < 0:
        raise BadRecord(f"{column}: {text} is negative; corrections are sent to the API, not imported")
    return value.scaleb(exponent, context=_EXACT)


def _parse_time(time: Time, text: str) -> datetime:
    try:
        return _instant(time.format, text.strip())
    except (ValueError, OverflowError, InvalidOperation) as error:
        raise BadRecord(f"{time.column}: {text[:80]!r} is no time in the format {time.format!r}") from error


@lru_cache(maxsize=4_096)
def _instant(pattern: str, text: str) -> datetime:
    """An aware UTC instant; cached, because days and seconds repeat and strptime is slow."""
    if pattern in ("unix", "unix_ms"):
        # Through whole microseconds, since a float of seconds has none to spare.
        micros = Decimal(text).scaleb(6 if pattern == "unix" else 3)
        return _EPOCH + timedelta(microseconds=int(micros))
    value = datetime.fromisoformat(text) if pattern == "iso" else datetime.strptime(text, pattern)  # noqa: DTZ007
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
