"""Drains the mail queue: claims pending `email.%` events, decides, renders, hands over, records.

What holds
----------
* A batch is one transaction. Its rows are locked with SKIP LOCKED, so several workers share the queue and
  none waits for another's rows. What was sent is recorded (`email_log`, `processed_at`, `outcome`) in the
  same transaction; when the process dies before the commit, the whole batch is pending again and is handed
  over with the same keys, which the provider turns into the same mails (see `providers`).
* No mail type goes twice to a customer within 24 h: the check and the record of sending stand under an
  advisory lock per type and recipient that lasts until the commit. What is then too much is skipped or waits,
  as its type says.
* An operator who sets `processed_at` and `error_message` of an event to NULL gets it sent again. The row
  still carries its earlier outcome, which tells such a re-send from a first send. It counts its attempts anew
  and is not bound by the 24-hour rule, because a person asked for this very mail; suppression and consent
  still bind.
* Every mail that is not sent carries its reason in `error_message`, with `outcome` skipped or failed, or none
  while it waits.

Belongs here: the order of these steps. Rules are in `rules.py`, statements in `store.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from apex_pipelines.messaging import rules, store
from apex_pipelines.messaging.formatting import one_line
from apex_pipelines.messaging.mail_types import (
    EVENT_PREFIX,
    Audience,
    MailType,
    MissingMailData,
    Stream,
    UnknownMailType,
    mail_type,
)
from apex_pipelines.messaging.providers import Mail, Provider, ProviderUnavailable, SendResult
from apex_pipelines.messaging.providers.outbox import OutboxProvider
from apex_pipelines.messaging.rendering import Renderer, RenderError
from apex_pipelines.messaging.unsubscribe import Unsubscriber
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings

log = get_logger(__name__)
TEST_TYPE_PREFIX = "test."


class NoRecipient(ValueError):
    """An event asks for a mail to a customer and names none."""


@dataclass(slots=True)
class DrainReport:
    """What one drain did.

    Attributes
    ----------
    sent : Counter
        Mails handed over, by type.
    skipped, waiting : Counter
        Mails not sent, or not yet, by reason.
    retrying, failed : Counter
        Mails that failed, by type: to be tried again, or given up.
    """

    sent: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    retrying: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Events that were decided about."""
        return sum(
            counter.total() for counter in (self.sent, self.skipped, self.waiting, self.retrying, self.failed)
        )


@dataclass(frozen=True, slots=True)
class _Addressed:
    """A claimed event with its type, and who gets it."""

    event: store.ClaimedEvent
    kind: MailType
    address: str
    name: str = ""
    customer_id: str | None = None
    consent: bool = True
    canceled: bool = False
    is_test: bool = False

    @property
    def repeat_key(self) -> str:
        return rules.repeat_key(self.kind, self.customer_id, self.address)

    @property
    def explicit(self) -> bool:
        return self.is_test or self.event.is_resend

    @property
    def logged_type(self) -> str:
        """Test mails are logged apart, so that they neither count as the real mail nor hold it back."""
        return TEST_TYPE_PREFIX + self.kind.name if self.is_test else self.kind.name


def create_provider(settings: Settings) -> Provider:
    """The provider that the settings name."""
    return OutboxProvider(settings.outbox_dir)


def drain(
    engine: sa.Engine,
    provider: Provider,
    clock: Clock,
    *,
    settings: Settings,
    batch_size: int | None = None,
    only_event: int | None = None,
) -> DrainReport:
    """Send what is due, batch by batch, until nothing is; safe to run several times at once.

    Parameters
    ----------
    batch_size : int or None
        Mails a transaction; the setting `email_batch_size` when None.
    only_event : int or None
        Look at this event alone.
    """
    worker = _Worker(engine, provider, clock, settings)
    report = DrainReport()
    while worker.drain_batch(batch_size or settings.email_batch_size, only_event, report):
        pass
    provider.finish()
    if report.total:
        log.info(
            "mail queue drained",
            sent=report.sent.total(), skipped=report.skipped.total(), waiting=report.waiting.total(),
            retrying=report.retrying.total(), failed=report.failed.total(),
        )  # fmt: skip
    return report


class _Worker:
    def __init__(self, engine: sa.Engine, provider: Provider, clock: Clock, settings: Settings) -> None:
        self._engine = engine
        self._provider = provider
        self._clock = clock
        self._settings = settings
        self._renderer = Renderer(settings.site_url)
        self._unsubscriber = Unsubscriber(settings)

    def drain_batch(self, batch_size: int, only_event: int | None, report: DrainReport) -> bool:
        """One transaction; False when nothing was due. `report` is added to only once it has committed."""
        batch = DrainReport()
        with self._engine.begin() as connection:
            now = self._clock.now()
            quota = self._settings.email_daily_quota
            if quota:
                store.lock_quota(connection)
            claimed = store.claim(connection, now=now, limit=batch_size, only_id=only_event)
            if not claimed:
                return False
            updates: list[store.EventUpdate] = []
            addressed = self._address(connection, claimed, updates, batch)
            sendable = self._judge(connection, addressed, updates, batch, now)
            if quota:
                room = max(quota - store.sent_today(connection, now), 0)
                for mail in sendable[room:]:
                    self._not_sent(mail, rules.out_of_quota(quota, now), updates, batch)
                sendable = sendable[:room]
            self._send(connection, sendable, updates, batch, now)
            store.record_updates(connection, updates, now)
        for name in ("sent", "skipped", "waiting", "retrying", "failed"):
            getattr(report, name).update(getattr(batch, name))
        return True

    def _address(
        self,
        connection: sa.Connection,
        claimed: Sequence[store.ClaimedEvent],
        updates: list[store.EventUpdate],
        report: DrainReport,
    ) -> list[_Addressed]:
        """Find type and recipient of each event; what has no known type fails."""
        customers = store.customer_addresses(
            connection, {event.customer_id for event in claimed if event.customer_id}
        )
        addressed = []
        for event in claimed:
            name = event.event_type.removeprefix(EVENT_PREFIX)
            try:
                addressed.append(self._address_one(event, mail_type(name), customers))
            except (UnknownMailType, NoRecipient) as error:
                updates.append(_failed(event, str(error)))
                report.failed[name] += 1
        return addressed

    def _address_one(
        self, event: store.ClaimedEvent, kind: MailType, customers: dict[str, store.CustomerAddress]
    ) -> _Addressed:
        if event.data.get("test") is True:
            return _Addressed(event, kind, str(event.data.get("recipient")), is_test=True)
        if kind.audience is Audience.OPERATOR:
            # Also when the event names a customer: what is meant for the operator must not reach them.
            return _Addressed(event, kind, self._settings.email_operator)
        if event.customer_id is None:
            raise NoRecipient(f"mail type {kind.name!r} goes to customers, and the event names none")
        customer = customers[event.customer_id]  # a foreign key vouches for it
        return _Addressed(
            event,
            kind,
            customer.email,
            name=customer.name,
            customer_id=event.customer_id,
            consent=customer.marketing_consent,
            canceled=customer.canceled,
        )

    def _judge(
        self,
        connection: sa.Connection,
        addressed: Sequence[_Addressed],
        updates: list[store.EventUpdate],
        report: DrainReport,
        now: datetime,
    ) -> list[_Addressed]:
        """Those that may go, most urgent first; the others are skipped, wait, or stay for the next batch."""
        if not addressed:
            return []
        suppressed = store.suppressions(connection, {mail.address for mail in addressed})
        store.lock_repeat_keys(connection, {mail.repeat_key for mail in addressed})
        sent = store.last_sent(
            connection, {(mail.logged_type, mail.customer_id) for mail in addressed}, now=now
        )
        sendable: list[_Addressed] = []
        taken: set[str] = set()
        for mail in addressed:
            recipient = rules.Recipient(
                address=mail.address,
                name=mail.name,
                marketing_consent=mail.consent,
                canceled=mail.canceled,
                suppressions=suppressed.get(mail.address.lower(), ()),
                last_sent_at=sent.get((mail.logged_type, mail.customer_id or mail.address.lower())),
            )
            verdict = rules.judge(mail.kind, recipient, explicit=mail.explicit, now=now)
            if not isinstance(verdict, rules.Send):
                self._not_sent(mail, verdict, updates, report)
            elif mail.repeat_key not in taken or mail.explicit or not rules.limits_repeats(mail.kind):
                taken.add(mail.repeat_key)
                sendable.append(mail)
            # Else an earlier one of this batch is of the same type and recipient. Whether this one is too
            # much depends on what becomes of that one; left pending, it is judged in the next batch.
        return sendable

    def _send(
        self,
        connection: sa.Connection,
        sendable: Sequence[_Addressed],
        updates: list[store.EventUpdate],
        report: DrainReport,
        now: datetime,
    ) -> None:
        """Render, hand over, and record each result."""
        if not sendable:
            return
        before = store.times_sent(connection, [mail.event.id for mail in sendable])
        rendered: list[tuple[_Addressed, Mail]] = []
        for mail in sendable:
            try:
                rendered.append((mail, self._render(mail, before.get(mail.event.id, 0) + 1, now)))
            except (MissingMailData, RenderError) as error:
                updates.append(_failed(mail.event, str(error)))
                report.failed[mail.kind.name] += 1
        try:
            results = self._provider.send([letter for _, letter in rendered]) if rendered else []
        except ProviderUnavailable as error:
            results = [SendResult(error=str(error))] * len(rendered)
        logged = []
        for (mail, letter), result in zip(rendered, results, strict=True):
            attempts = _attempts_before(mail.event) + 1
            if result.error is None:
                report.sent[mail.kind.name] += 1
                updates.append(store.EventUpdate(mail.event.id, "sent", None, attempts))
                logged.append(
                    {
                        "event_id": mail.event.id,
                        "customer_id": mail.customer_id,
                        "email_type": mail.logged_type,
                        "recipient": letter.recipient,
                        "subject": letter.subject,
                        "provider": self._provider.name,
                        "provider_message_id": result.provider_message_id,
                        "sent_at": now,
                    }
                )
            elif result.permanent or attempts >= self._settings.email_max_attempts:
                report.failed[mail.kind.name] += 1
                updates.append(store.EventUpdate(mail.event.id, "failed", result.error, attempts))
            else:
                report.retrying[mail.kind.name] += 1
                updates.append(
                    store.EventUpdate(
                        mail.event.id, None, result.error, attempts, now + rules.backoff(attempts)
                    )
                )
        store.record_sent(connection, logged)

    def _render(self, mail: _Addressed, send_number: int, now: datetime) -> Mail:
        headers: tuple[tuple[str, str], ...] = ()
        unsubscribe_url = None
        if mail.kind.stream is Stream.MARKETING:
            unsubscribe_url = self._unsubscriber.url(mail.customer_id or "test")
            headers = (
                ("List-Unsubscribe", f"<{unsubscribe_url}>"),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
            )
        content = self._renderer.render(
            mail.kind, mail.event.data, name=mail.name, unsubscribe_url=unsubscribe_url
        )
        return Mail(
            event_id=mail.event.id,
            send_number=send_number,
            email_type=mail.kind.name,
            sender=self._settings.email_sender,
            recipient=mail.address,
            recipient_name=one_line(mail.name),
            subject=f"[test] {content.subject}" if mail.is_test else content.subject,
            html=content.html,
            text=content.text,
            queued_at=mail.event.created_at,
            sent_at=now,
            headers=headers,
        )

    def _not_sent(
        self,
        mail: _Addressed,
        verdict: rules.Skip | rules.Wait,
        updates: list[store.EventUpdate],
        report: DrainReport,
    ) -> None:
        attempts = _attempts_before(mail.event)
        if isinstance(verdict, rules.Skip):
            report.skipped[verdict.reason.value] += 1
            updates.append(store.EventUpdate(mail.event.id, "skipped", verdict.message, attempts))
        else:
            report.waiting[verdict.reason.value] += 1
            updates.append(store.EventUpdate(mail.event.id, None, verdict.message, attempts, verdict.until))


def _attempts_before(event: store.ClaimedEvent) -> int:
    """Attempts already made; an event that an operator reset (its error message is gone) starts from zero."""
    return 0 if event.error_message is None else event.attempts


def _failed(event: store.ClaimedEvent, message: str) -> store.EventUpdate:
    """An event that no retry can help: its data or type is wrong. An operator may reset it after the cure."""
    return store.EventUpdate(event.id, "failed", message, _attempts_before(event) + 1)
