"""One-click unsubscribe from marketing mail: the signed token in the link, and what following it does.

Belongs here: making, checking and acting on tokens. Does not belong here: the HTTP endpoint.
"""

from __future__ import annotations

import hashlib
import hmac

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.customers.models import Customer
from apex_pipelines.messaging.models import Suppression
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.kept_secret import kept_secret
from apex_pipelines.settings import Settings


class InvalidUnsubscribeToken(ValueError):
    """The token was not made by this platform."""


class Unsubscriber:
    """Makes and checks unsubscribe links.

    Parameters
    ----------
    settings : Settings
        `home` holds the signing key (links stop working when it is lost), `site_url` starts the link.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = bytes.fromhex(kept_secret(settings.home_path / "unsubscribe.key"))
        self._site_url = settings.site_url.rstrip("/")

    def token(self, subject: str) -> str:
        """Signed token for `subject`, a customer's id."""
        return f"{subject}.{self._signature(subject)}"

    def url(self, subject: str) -> str:
        """Address that unsubscribes `subject` when it is opened or, in one click, posted to."""
        return f"{self._site_url}/unsubscribe?token={self.token(subject)}"

    def subject_of(self, token: str) -> str:
        """Whom `token` unsubscribes.

        Raises
        ------
        InvalidUnsubscribeToken
            If its signature is not ours.
        """
        subject, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(subject).encode()):
            raise InvalidUnsubscribeToken("the unsubscribe link is damaged; use the one in the newest mail")
        return subject

    def _signature(self, subject: str) -> str:
        return hmac.new(self._key, subject.encode(), hashlib.sha256).hexdigest()[:32]


def unsubscribe(connection: sa.Connection, customer_id: str, clock: Clock) -> bool:
    """Withdraw a customer's consent to marketing mail, in the caller's transaction; safe to repeat.

    The address is noted as suppressed too, so that the reason outlives a later change of consent by mistake.

    Returns
    -------
    bool
        False when there is no such customer.
    """
    email = connection.scalar(
        sa.update(Customer)
        .where(Customer.id == customer_id)
        .values(marketing_consent=False)
        .returning(Customer.email)
    )
    if email is None:
        return False
    connection.execute(
        insert(Suppression)
        .values(email=email.lower(), reason="unsubscribed", created_at=clock.now())
        .on_conflict_do_nothing()
    )
    return True
