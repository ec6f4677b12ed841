"""Usage events as typed structs: what clients send, and what has been accepted.

Belongs here: the shape and the bounds of an event. Does not belong here: whether an event may be accepted
(`rules.py`), and how structs travel over HTTP or to disk (`ingest_api`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

MAX_EVENT_ID_CHARACTERS = 128
MAX_METADATA_KEYS = 32
MAX_METADATA_BYTES = 8 * 1024

EventId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_EVENT_ID_CHARACTERS)]
MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
MetadataText = Annotated[str, msgspec.Meta(max_length=1024)]
# Scalars only: nested values could not be bounded, and no model reads them.
Metadata = Annotated[
    dict[MetadataKey, MetadataText | int | float | bool | None], msgspec.Meta(max_length=MAX_METADATA_KEYS)
]


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event as a client sends it.

    Decoding checks types and bounds; unknown fields are ignored, so that SDKs newer than the server work.

    Attributes
    ----------
    quantity : int or Decimal
        In the metric's unit, exactly as written: a JSON number or a decimal string, never through a float.
    timestamp : datetime, optional
        When it happened; without a zone it is UTC. Arrival time when absent.
    corrects_event_id, reason : str, optional
        Both belong to a correction, which has a negative quantity.
    """

    metric_type: Annotated[str, msgspec.Meta(max_length=64)]
    quantity: int | Decimal
    event_id: EventId | None = None
    timestamp: datetime | None = None
    metadata: Metadata | None = None
    corrects_event_id: EventId | None = None
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None


class AcceptedEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event that counts, in the units and the order of `raw.usage_events`.

    It is written to the spool as an array: fields may be appended with a default, never moved or removed,
    because segments of the version before may still wait to be loaded.

    Attributes
    ----------
    quantity : int
        In storage units: the metric's unit times ``10**scale`` of the catalogue.
    event_time_ms : int
        Milliseconds since 1970-01-01 UTC.
    accepted_at_us : int
        Microseconds since 1970-01-01 UTC.
    metadata : str
        JSON object.
    historical : bool
        Whether a key for history brought it, so that it may be older than what others may send.
    """

    customer_id: str
    event_id: str
    metric_type: str
    quantity: int
    event_time_ms: int
    accepted_at_us: int
    metadata: str
    corrects_event_id: str
    correction_reason: str
    historical: bool = False


def milliseconds(instant: datetime) -> int:
    """Whole milliseconds since 1970-01-01 UTC, rounded down; an instant without zone is taken as UTC."""
    since = (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)) - EPOCH
    # Once for each event of each batch: a third faster than a division by a timedelta.
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def microseconds(instant: datetime) -> int:
    """Whole microseconds since 1970-01-01 UTC; an instant without zone is taken as UTC."""
    since = (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
