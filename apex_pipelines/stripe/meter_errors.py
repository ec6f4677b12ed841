"""What Stripe found wrong with meter events after it had taken them.

Stripe tells of it minutes later, by an event that names some of the meter events that it dropped.

Belongs here: reading such a report, and marking the ledger's entries. Does not belong here: what is sent
instead (usage sync).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa

from apex_pipelines.stripe.models import MeterLedgerEntry, SentState


@dataclass(frozen=True, slots=True)
class MeterError:
    """One meter event that Stripe dropped; `code` in Stripe's words, such as `timestamp_too_far_in_past`."""

    identifier: str
    code: str
    message: str


class _Request(msgspec.Struct):
    identifier: str = ""


class _Sample(msgspec.Struct):
    error_message: str = ""
    request: _Request = msgspec.field(default_factory=_Request)


class _ErrorType(msgspec.Struct):
    code: str
    sample_errors: list[_Sample] = []


class _Reason(msgspec.Struct):
    error_types: list[_ErrorType] = []


class _Data(msgspec.Struct):
    reason: _Reason


class _Report(msgspec.Struct):
    data: _Data


def read_report(payload: bytes) -> list[MeterError]:
    """The meter events that a report names.

    Raises
    ------
    msgspec.ValidationError
        If a field that we need is missing or of another type.
    """
    report = msgspec.json.decode(payload, type=_Report)
    return [
        MeterError(sample.request.identifier, kind.code, sample.error_message)
        for kind in report.data.reason.error_types
        for sample in kind.sample_errors
        if sample.request.identifier
    ]


def record_meter_error(
    connection: sa.Connection, error: MeterError, now: datetime, *, livemode: bool
) -> bool:
    """Mark the ledger's entry as rejected, so that its quantity counts as not sent; whether there is one.

    Stripe calls what a report names the request's idempotency key; ours begins with the event's identifier.
    """
    identifier, _, _attempt = error.identifier.partition(".")
    entry = sa.and_(MeterLedgerEntry.identifier == identifier, MeterLedgerEntry.livemode == livemode)
    changed = connection.execute(
        sa.update(MeterLedgerEntry)
        .where(entry)
        .values(state=SentState.REJECTED, settled_at=now, error_message=f"{error.code}: {error.message}")
    )
    return changed.rowcount == 1
