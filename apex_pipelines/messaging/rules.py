"""Which of the claimed mails go, wait or are dropped: values in, verdicts out.

Belongs here: the rules of sending. Does not belong here: SQL (`store.py`), rendering, providers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from apex_pipelines.messaging.mail_types import MailType, OnRepeat, Stream

REPEAT_WINDOW = timedelta(hours=24)
FIRST_BACKOFF = timedelta(minutes=1)
LONGEST_BACKOFF = timedelta(hours=6)


class Reason(StrEnum):
    """Why a mail was not sent, or not yet."""

    SUPPRESSED = "suppressed"
    NO_CONSENT = "no_consent"
    CANCELED = "customer_canceled"
    REPEATED = "sent_within_24_hours"
    QUOTA = "daily_quota"


@dataclass(frozen=True, slots=True)
class Send:
    """Hand it over."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Never send it by itself; `message` is kept on the event."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again at `until`; `message` is kept on the event."""

    reason: Reason
    message: str
    until: datetime


Verdict = Send | Skip | Wait


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a mail goes to, as the database knows them at the moment of sending.

    Attributes
    ----------
    suppressions : collection of str
        Reasons for which the address is suppressed.
    canceled : bool
        The customer had a subscription and has none any more.
    last_sent_at : datetime or None
        When this mail type last went to this recipient, if within the last 24 h.
    """

    address: str
    name: str
    marketing_consent: bool
    canceled: bool
    suppressions: Collection[str]
    last_sent_at: datetime | None


def judge(mail_type: MailType, recipient: Recipient, *, explicit: bool, now: datetime) -> Verdict:
    """Decide about one mail, the daily quota aside.

    Suppression and consent bind always. The 24-hour rule does not bind a mail that a person asked for by name
    (`explicit`): a test mail, or an event that an operator sends again.
    """
    hard = sorted(set(recipient.suppressions) - {"unsubscribed"})
    if hard:
        return Skip(Reason.SUPPRESSED, f"suppressed: {', '.join(hard)}")
    if mail_type.stream is Stream.MARKETING:
        if "unsubscribed" in recipient.suppressions:
            return Skip(Reason.SUPPRESSED, "suppressed: unsubscribed")
        if not recipient.marketing_consent:
            return Skip(Reason.NO_CONSENT, "no consent to marketing mail")
        if recipient.canceled:
            return Skip(Reason.CANCELED, "the customer's subscription has ended")
    last = recipient.last_sent_at
    if explicit or last is None or not limits_repeats(mail_type) or last + REPEAT_WINDOW <= now:
        return Send()
    sent = f"{mail_type.name} was sent to this recipient at {last:%Y-%m-%d %H:%M} UTC, less than 24 h ago"
    if mail_type.on_repeat is OnRepeat.WAIT:
        return Wait(Reason.REPEATED, f"waiting: {sent}", last + REPEAT_WINDOW)
    return Skip(Reason.REPEATED, sent)


def limits_repeats(mail_type: MailType) -> bool:
    """Whether the 24-hour rule binds this type; only some mails to the operator are free of it."""
    return mail_type.on_repeat is not OnRepeat.ALLOW


def out_of_quota(quota: int, now: datetime) -> Wait:
    """What becomes of a mail for which today's quota has no room; quotas begin anew at midnight UTC."""
    tomorrow = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    return Wait(
        Reason.QUOTA, f"waiting: today's quota of {quota} mails is used up; money mail goes first", tomorrow
    )


def backoff(attempts: int) -> timedelta:
    """How long to wait after the `attempts`-th failure: 1, 5, 25 minutes, 2 h 5 min, then 6 h."""
    factor: int = 5 ** (attempts - 1)
    return min(FIRST_BACKOFF * factor, LONGEST_BACKOFF)


def repeat_key(mail_type: MailType, customer_id: str | None, address: str) -> str:
    """What the 24-hour rule counts by: the type, and the customer or (without one) the address."""
    return f"{mail_type.name}|{customer_id or address.lower()}"
