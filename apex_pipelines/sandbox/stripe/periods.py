"""Billing periods.

Belongs here: arithmetic of intervals from an anchor, in UTC. Does not belong here: who has which period.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

from apex_pipelines.sandbox.stripe.store import Object

_MONTHS = {"month": 1, "year": 12}
_DAYS = {"day": 1, "week": 7}


def boundary(anchor: int, recurring: Object, number: int) -> int:
    """The start of the period with that number, the anchor's being 0, in seconds since 1970.

    Months keep the anchor's day where they have it, else take their last one: from 31 January come
    28 February and 31 March.
    """
    start = datetime.fromtimestamp(anchor, UTC)
    steps = number * int(recurring["interval_count"])
    if recurring["interval"] in _DAYS:
        return int((start + timedelta(days=steps * _DAYS[recurring["interval"]])).timestamp())
    months = start.year * 12 + start.month - 1 + steps * _MONTHS[recurring["interval"]]
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def period_at(anchor: int, recurring: Object, instant: int) -> tuple[int, int]:
    """The period ``[start, end)`` that has this instant."""
    length = boundary(anchor, recurring, 1) - anchor
    number = (instant - anchor) // length
    while boundary(anchor, recurring, number + 1) <= instant:
        number += 1
    while boundary(anchor, recurring, number) > instant:
        number -= 1
    return boundary(anchor, recurring, number), boundary(anchor, recurring, number + 1)
