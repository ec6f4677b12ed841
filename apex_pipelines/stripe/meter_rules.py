"""What is to be sent of a slot of use, and for how long: values in, decisions out.

Belongs here: identifiers, differences, deadlines. Does not belong here: tables, calls, the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations

# Stripe takes meter events of the last 35 days; the margin is for a run's own length and clocks that differ.
METERED_FOR = timedelta(days=35)
METERED_MARGIN = timedelta(hours=1)
# Stripe knows an identifier again for at least 24 hours.
KNOWN_AGAIN_FOR = timedelta(hours=23)
# Meters add up later than they accept; what was accepted before is taken to be in their sums.
ADDED_UP_AFTER = timedelta(hours=1)
# Beyond that, which of them arrived can't be told in reasonable time.
_MOST_UNKNOWN = 12


@dataclass(frozen=True, slots=True)
class Slot:
    """Counted use of one customer and metric in a UTC day, or the part of it inside one billing period.

    Attributes
    ----------
    slot_start : datetime
        Whole second, UTC; the timestamp of the slot's meter events.
    slot_end : datetime
        First instant after it.
    quantity : int
        In storage units; may be negative.
    """

    customer_id: str
    metric_type: str
    slot_start: datetime
    slot_end: datetime
    subscription_id: str
    period_start: datetime
    period_end: datetime
    quantity: int

    @property
    def key(self) -> SlotKey:
        return self.customer_id, self.metric_type, self.slot_start


SlotKey = tuple[str, str, datetime]


@dataclass(frozen=True, slots=True)
class Told:
    """What the ledger has of a slot: the sum of entries that are not rejected, and the last one's number."""

    quantity: int = 0
    last_number: int = 0


@dataclass(frozen=True, slots=True)
class NewEntry:
    """One more line of the ledger.

    Attributes
    ----------
    quantity : int
        Difference to what has been told, in storage units; never 0.
    is_too_late : bool
        Stripe no longer takes use of that time.
    """

    slot: Slot
    stripe_customer_id: str
    number: int
    quantity: int
    is_too_late: bool

    @property
    def identifier(self) -> str:
        """The meter event's, the same whenever this entry is made anew."""
        slot = self.slot
        return f"apex-{slot.customer_id}-{slot.metric_type}-{slot.slot_start.timestamp():.0f}-{self.number}"


def new_entry(slot: Slot, told: Told, stripe_customer_id: str, now: datetime) -> NewEntry | None:
    """What Stripe must still be told of a slot at `now`; None when it knows, or when the slot still runs."""
    difference = slot.quantity - told.quantity
    if difference == 0 or slot.slot_end > now:
        return None
    return NewEntry(
        slot, stripe_customer_id, told.last_number + 1, difference, is_too_late(slot.slot_start, now)
    )


def is_too_late(slot_start: datetime, now: datetime) -> bool:
    """Whether Stripe may refuse an event of that time for its age."""
    return now - slot_start > METERED_FOR - METERED_MARGIN


def is_known_again(first_sent_at: datetime, now: datetime) -> bool:
    """Whether Stripe still takes a second event of the same identifier for the first."""
    return now - first_sent_at < KNOWN_AGAIN_FOR


def which_arrived(unknown: Sequence[int], arrived: int) -> list[bool] | None:
    """Which of the quantities add up to what arrived; None when none do.

    When several choices do, any is as right as another: they add up to the same, and what is taken for lost
    is sent under a new identifier.
    """
    if len(unknown) > _MOST_UNKNOWN:
        return None
    for size in range(len(unknown) + 1):
        for chosen in combinations(range(len(unknown)), size):
            if sum(unknown[index] for index in chosen) == arrived:
                return [index in chosen for index in range(len(unknown))]
    return None


def minute_around(instant: datetime) -> tuple[datetime, datetime]:
    """The shortest window that Stripe sums a meter over: its minute, from the start to before the end."""
    start = instant.replace(second=0, microsecond=0)
    return start, start + timedelta(minutes=1)
