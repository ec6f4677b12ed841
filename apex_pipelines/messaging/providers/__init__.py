"""What carries mails away: the contract every provider keeps.

Belongs here: the types that the queue and a provider exchange. Each provider has its own file.

Exactly once
------------
The queue hands a mail over inside the transaction that records it as sent. When the process dies between
the two, the mail is handed over again with the same `event_id` and `send_number`, and so the same `key`. A
provider must turn that key into "the same mail", each with what it has: the outbox folder rewrites the same
file; an HTTP provider sends `key` as its idempotency key (Resend remembers one for 24 h, so a mail is doubled
only when the process dies at that very point and nothing drains the queue for a day); SMTP has nothing but
the stable Message-ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Mail:
    """One rendered mail on its way out.

    Attributes
    ----------
    event_id : int
        Id of the outbox row that asked for it.
    send_number : int
        1, and one more each time an operator sends the same event again.
    queued_at, sent_at : datetime
        When the event was written, and when this hand-over happens; UTC. Only the first is the same when a
        hand-over is repeated after a crash.
    headers : tuple of (name, value)
        Headers besides the usual ones.
    """

    event_id: int
    send_number: int
    email_type: str
    sender: str
    recipient: str
    recipient_name: str
    subject: str
    html: str
    text: str
    queued_at: datetime
    sent_at: datetime
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Idempotency key: the same for a repeated hand-over, another one for an explicit re-send."""
        return f"{self.event_id}-{self.send_number}"

    @property
    def message_id(self) -> str:
        """RFC 5322 Message-ID, as stable as `key`; the queueing time keeps databases apart."""
        domain = parseaddr(self.sender)[1].rpartition("@")[2]
        return f"<{self.key}.{int(self.queued_at.timestamp())}@{domain}>"


@dataclass(frozen=True, slots=True)
class SendResult:
    """What a provider says of one mail: accepted when `error` is None.

    Attributes
    ----------
    permanent : bool
        The provider will never take this mail, so that trying again is pointless.
    """

    provider_message_id: str | None = None
    error: str | None = None
    permanent: bool = False


class ProviderUnavailable(RuntimeError):
    """The provider took none of the mails handed over; each is tried again later."""


class Provider(Protocol):
    """Carries mails away."""

    @property
    def name(self) -> str:
        """Recorded in `email_log.provider`."""
        ...

    def send(self, mails: Sequence[Mail]) -> list[SendResult]:
        """Hand over `mails`; one result each, in the same order.

        Raises
        ------
        ProviderUnavailable
            If it can't take any mail at the moment.
        """
        ...

    def finish(self) -> None:
        """Called when a drain ends, also one that had nothing to send."""
        ...
