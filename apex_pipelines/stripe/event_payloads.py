"""What an event of Stripe says: that an object changed. Its own copy of the object is not used.

Belongs here: reading the two forms of events. Does not belong here: what is done about them (`inbox.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from apex_pipelines.stripe.object_types import OBJECT_TYPES, ObjectType

# Fields of a subscription that say what holds from when on; a change of others is of no date.
_DATED = frozenset({"status", "items", "plan", "quantity"})
METER_ERRORS = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})


class UnreadableEvent(ValueError):
    """It is no event; the message says why, and nothing of its content."""


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """An event.

    Attributes
    ----------
    kind : ObjectType or None
        Type of the object that changed; None when it is none that we read.
    dated_at : datetime or None
        When what holds of the object changed; None when the event is about something else.
    """

    id: str
    type: str
    livemode: bool
    kind: ObjectType | None
    object_id: str
    dated_at: datetime | None

    @property
    def is_meter_error(self) -> bool:
        return self.type in METER_ERRORS


class _Object(msgspec.Struct):
    object: str = ""
    id: str = ""


class _Data(msgspec.Struct):
    object: _Object | None = None
    previous_attributes: dict[str, msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    id: str
    type: str
    created: int | str  # seconds, in API v2 an ISO instant
    livemode: bool = False
    data: _Data | None = None


def read_event(payload: bytes) -> StripeEvent:
    """An event from its JSON, of either version of the API.

    Raises
    ------
    UnreadableEvent
        If a field that we need is missing or of another type.
    """
    try:
        told = msgspec.json.decode(payload, type=_Event)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UnreadableEvent(str(error)) from error
    data = told.data or _Data()
    about = data.object or _Object()
    before = data.previous_attributes
    is_dated = before is None or not _DATED.isdisjoint(before)
    return StripeEvent(
        id=told.id,
        type=told.type,
        livemode=told.livemode,
        # What is announced and not there yet (invoice.upcoming) has no id.
        kind=OBJECT_TYPES.get(about.object) if about.id else None,
        object_id=about.id,
        dated_at=datetime.fromtimestamp(told.created, UTC)
        if isinstance(told.created, int) and is_dated
        else None,
    )
