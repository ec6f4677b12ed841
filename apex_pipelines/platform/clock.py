"""Clocks. Time is an argument everywhere: whoever needs it is handed one of these.

Belongs here: reading the time. Does not belong here: schedules, time windows of any rule.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol


class BadClock(ValueError):
    """The setting names no clock."""


class Clock(Protocol):
    """Tells the time as an aware UTC datetime."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's clock, in UTC."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class ManualClock:
    """A clock that stands still until it is moved; for tests, demos and backfills.

    Parameters
    ----------
    start : datetime
        Aware instant at which the clock stands.

    Raises
    ------
    ValueError
        If `start` has no time zone.
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise ValueError(f"a clock needs an instant with a time zone, got {start.isoformat()!r}")
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta) -> None:
        self._now += by

    def set(self, to: datetime) -> None:
        self._now = to.astimezone(UTC)


def parse_instant(text: str) -> datetime:
    """ISO 8601 text as an aware UTC datetime; a text without zone is taken as UTC.

    Raises
    ------
    ValueError
        If the text is no ISO 8601 date or instant.
    """
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return value.astimezone(UTC)


def clock_from_setting(setting: str) -> Clock:
    """The clock that `APEX_CLOCK` names: `system`, or an ISO instant at which time stands still.

    Raises
    ------
    BadClock
        If the setting is neither; the message names it.
    """
    if setting == "system":
        return SystemClock()
    try:
        return ManualClock(parse_instant(setting))
    except ValueError as error:
        raise BadClock(
            f"APEX_CLOCK={setting!r} is neither 'system' nor an ISO instant such as 1998-07-01T00:00:00Z"
        ) from error
