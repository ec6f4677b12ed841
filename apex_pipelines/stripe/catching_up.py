"""Everything from Stripe, as it is now: read whole what was never read whole, then what has changed since.

Belongs here: when everything is read again. Does not belong here: how (`backfill.py`, `sweep.py`,
`inbox.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from apex_pipelines.platform.logging import get_logger
from apex_pipelines.stripe.account import ReadAccount
from apex_pipelines.stripe.backfill import (
    BackfillReport,
    Progress,
    backfill,
    say_nothing,
    unfinished_types,
)
from apex_pipelines.stripe.inbox import InboxReport, drain_inbox
from apex_pipelines.stripe.sweep import BackfillNeeded, SweepReport, sweep

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CatchUpReport:
    """What was read whole, what the event list had, and what came of it."""

    whole: BackfillReport
    events: SweepReport
    changed: InboxReport

    def objects(self, object_type: str) -> int:
        """Objects of a type that were read."""
        return self.whole.objects.get(object_type, 0) + self.changed.objects.get(object_type, 0)


def catch_up(
    account: ReadAccount, types: Collection[str], *, progress: Progress = say_nothing
) -> CatchUpReport:
    """Read these types whole when that was never done, and take in what events tell of any type.

    When the event list no longer reaches back to the last time, all types are read whole again.

    Raises
    ------
    ReadingUnderWay
        If another process reads from this account now.
    stripe.StripeError
        If Stripe refuses, or can't be reached; calling again goes on.
    """
    engine, client, reader = account.engine, account.client, account.reader
    missing = set(unfinished_types(engine, livemode=reader.livemode)) & set(types)
    whole = backfill(engine, client, reader, types=missing, progress=progress)
    try:
        events = sweep(engine, reader)
    except BackfillNeeded as needed:
        log.warning("everything is read from stripe again", reason=str(needed))
        whole = backfill(engine, client, reader, again=True, progress=progress)
        events = sweep(engine, reader)
    return CatchUpReport(whole, events, drain_inbox(engine, reader, account.changes))
