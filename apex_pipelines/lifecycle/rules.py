"""The life-cycle rules: values in, decisions out.

Belongs here: who gets which life-cycle mail, as far as marts have not decided it. Does not belong here:
reading marts (`marts.py`), operational tables (`store.py`), queueing (`triggers/`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date, timedelta
from decimal import Decimal

# A customer who stays at risk is in one episode, and an episode is mailed once.
EPISODE = timedelta(days=30)
# A mail about something older than this would surprise rather than help; it is not sent.
FRESH_DAYS = 2
# Thresholds reached in a period that ended are recorded for as long as late events are accepted by default.
ENDED_PERIOD_CATCH_UP = timedelta(days=35)
# How long after entering a segment its mail still goes out, when the days between were missed.
SEGMENT_CATCH_UP = timedelta(days=7)
CHECK_IN_DAYS = (2, 5, 7, 12)
TRIAL_REMINDER_DAYS = (1, 3, 7)
SEGMENT_MAILS = {"power_user": "power_user", "growing": "growing", "vip": "vip_welcome"}
AT_RISK_MAILS = {
    "usage_drop": "usage_drop",
    "no_telemetry": "integration_help",
    "near_limit": "upgrade_offer",
}


def starts_episode(earlier_starts: Iterable[date], as_of_date: date) -> bool:
    """Whether `as_of_date` begins a new episode: no mailed one began within 30 days of it, before or after.

    After counts too, so that running an earlier day again doesn't mail about what a later day has mailed.
    """
    return all(abs(as_of_date - start) >= EPISODE for start in earlier_starts)


def is_fresh(occurred_on: date, as_of_date: date) -> bool:
    """Whether something of that day still deserves a mail on `as_of_date`: at most two days old."""
    return 0 <= (as_of_date - occurred_on).days <= FRESH_DAYS


def thresholds_passed(quantity: int, included: int, thresholds: Sequence[Decimal]) -> list[int]:
    """Percentages of the included quantity that `quantity` has reached, ascending; exact, without floats."""
    if included <= 0:
        return []
    return [int(percent) for percent in sorted(thresholds) if quantity * 100 >= percent * included]


def threshold_to_mail(passed: Sequence[int], recorded: Collection[int]) -> int | None:
    """The one threshold to mail: the highest passed, unless it was recorded before."""
    highest = max(passed, default=None)
    return None if highest in recorded else highest


def mails_period(ends_on: date, as_of_date: date) -> bool:
    """Whether use of a period is mailed on `as_of_date`: of one that has not ended, or ended freshly."""
    return ends_on > as_of_date or is_fresh(ends_on, as_of_date)


DOWNLOAD_STEP = "sdk_downloaded."


def downloaded_platform(step: str) -> str | None:
    """Platform of a download step (`sdk_downloaded.<platform>`); None of any other step."""
    return step.removeprefix(DOWNLOAD_STEP) if step.startswith(DOWNLOAD_STEP) else None


def step_mail(step: str, steps_taken: Collection[str]) -> str | None:
    """Mail for a step just taken; None when there is none, or the customer is already past the step.

    The first impression tells everything that the first request would have told, and who sends requests needs
    no guide to the SDK any more.
    """
    if downloaded_platform(step) and not {"first_request", "first_impression"} & set(steps_taken):
        return "sdk_guide"
    if step == "first_impression":
        return "first_impression"
    if step == "first_request" and "first_impression" not in steps_taken:
        return "first_request"
    return None


def due_check_in(age_days: int) -> int | None:
    """The check-in (day 2, 5, 7 or 12) due at this age; after missed days the newest one alone."""
    due = [day for day in CHECK_IN_DAYS if day <= age_days <= day + FRESH_DAYS]
    return max(due, default=None)


def check_in_fits(day: int, steps_taken: Collection[str], *, trialing: bool) -> bool:
    """Whether the check-in of that day has something to say to this customer.

    Day 2 asks how the integration goes, so not after the first request. Day 5 gives tips for the first ads,
    so not after the first impression. Day 7 and 12 are notes on the trial, so only during one; day 7 shows
    first figures, so only with telemetry (without it, integration help goes out that day).
    """
    if day == 2:
        return not {"first_request", "first_impression"} & set(steps_taken)
    if day == 5:
        return "first_impression" not in steps_taken
    if day == 7:
        return trialing and "first_request" in steps_taken
    return trialing


def trial_reminder(days_left: int) -> int | None:
    """Which reminder (7, 3 or 1 days before the end) is due; a missed one goes out up to two days late."""
    due = [day for day in TRIAL_REMINDER_DAYS if max(day - FRESH_DAYS, 0) <= days_left <= day]
    return min(due, default=None)


def growth_percent(recent: int, previous: int) -> int | None:
    """Growth in whole per cent, rounded down; None without a base to grow from."""
    return None if previous <= 0 else (recent - previous) * 100 // previous
