"""Why an event was not accepted: codes that clients may rely on, and the sentence that goes with each.

Belongs here: reasons that concern one event. Does not belong here: errors of a whole request (`ingest_api`).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class RejectionReason(StrEnum):
    """Codes of rejection; they are part of the API and never change their meaning."""

    MALFORMED_EVENT = "malformed_event"
    UNKNOWN_METRIC = "unknown_metric"
    INVALID_QUANTITY = "invalid_quantity"
    QUANTITY_TOO_PRECISE = "quantity_too_precise"
    QUANTITY_TOO_LARGE = "quantity_too_large"
    NEGATIVE_WITHOUT_CORRECTION = "negative_without_correction"
    CORRECTION_NOT_NEGATIVE = "correction_not_negative"
    INVALID_CORRECTION = "invalid_correction"
    INVALID_EVENT_ID = "invalid_event_id"
    INVALID_TIMESTAMP = "invalid_timestamp"
    TOO_EARLY = "too_early"
    TOO_LATE = "too_late"
    INVALID_METADATA = "invalid_metadata"
    METADATA_TOO_LARGE = "metadata_too_large"
    METADATA_KEY_MISSING = "metadata_key_missing"
    # Of life events only.
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    UNKNOWN_CUSTOMER = "unknown_customer"


class Rejection(msgspec.Struct, frozen=True):
    """An event that was not accepted.

    Attributes
    ----------
    message : str
        What was wrong, with the value received and what to do, for the client's developer.
    event_id : str or None
        The client's, when it could be read.
    """

    reason: RejectionReason
    message: str
    event_id: str | None = None


_REASON_BY_FIELD = {
    "event_type": RejectionReason.UNKNOWN_EVENT_TYPE,
    "metric_type": RejectionReason.UNKNOWN_METRIC,
    "quantity": RejectionReason.INVALID_QUANTITY,
    "event_id": RejectionReason.INVALID_EVENT_ID,
    "timestamp": RejectionReason.INVALID_TIMESTAMP,
    "metadata": RejectionReason.INVALID_METADATA,
    "corrects_event_id": RejectionReason.INVALID_CORRECTION,
    "reason": RejectionReason.INVALID_CORRECTION,
}


def rejection_of_invalid(error: msgspec.ValidationError, event_id: str | None = None) -> Rejection:
    """The rejection that a decoder's complaint about one event amounts to.

    The decoder names the field as ``$.field`` at the end of its message; without one, the event as a whole
    is malformed (not an object, or a required field is missing).
    """
    message = str(error)
    _, _, path = message.partition("`$.")
    field = path.partition("`")[0].partition("[")[0]
    return Rejection(_REASON_BY_FIELD.get(field, RejectionReason.MALFORMED_EVENT), message, event_id)
