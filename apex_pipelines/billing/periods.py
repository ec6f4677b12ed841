"""Billing periods: which month of a subscription an instant falls into. Pure arithmetic, no tables."""

from __future__ import annotations

import calendar
from datetime import datetime


def add_months(instant: datetime, months: int) -> datetime:
    """`instant` moved by whole months; 31 January plus one month is 28 February (or 29)."""
    index = instant.year * 12 + instant.month - 1 + months
    year, month = divmod(index, 12)
    day = min(instant.day, calendar.monthrange(year, month + 1)[1])
    return instant.replace(year=year, month=month + 1, day=day)


def period_at(
    started_at: datetime, trial_end: datetime | None, instant: datetime
) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of the billing period that `instant` falls into.

    A trial is a period of its own; monthly periods count from its end, or from the start without one. Each is
    counted from that anchor, never from the period before, so that the 31st comes back after a February. An
    instant before the start belongs to the first period.
    """
    if trial_end is not None and instant < trial_end:
        return started_at, trial_end
    anchor = trial_end or started_at
    months = max((instant.year - anchor.year) * 12 + instant.month - anchor.month, 0)
    if months and add_months(anchor, months) > instant:
        months -= 1
    return add_months(anchor, months), add_months(anchor, months + 1)
