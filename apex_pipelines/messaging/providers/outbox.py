"""The default provider: each mail becomes an `.eml` and an `.html` file in a folder, with an index page.

Files are named after the event, and folders after the day on which it was queued, because both stay the same
when a crash makes the queue hand a mail over again: the same file is then written again. Files appear whole
or not at all, whatever kills the process. They are not fsynced (a power cut may lose what a kill can't): the
folder is for looking at mails, not for delivering them.

Belongs here: writing mails as files. The index pages are made in `outbox_index.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path

from apex_pipelines.messaging.formatting import one_line
from apex_pipelines.messaging.providers import Mail, ProviderUnavailable, SendResult
from apex_pipelines.messaging.providers.outbox_index import IndexEntry, append_entries, refresh_index
from apex_pipelines.platform.logging import get_logger

log = get_logger(__name__)


class OutboxProvider:
    """Writes mails to `folder/<YYYY-MM-DD>/<type>-<event id>-<send number>.{eml,html}`."""

    name = "outbox"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, mails: Sequence[Mail]) -> list[SendResult]:
        """Write each mail's files, then note them for the index; one result each, in order."""
        results = []
        written = []
        for mail in mails:
            try:
                message = build_message(mail)
            except (ValueError, MessageError, IndexError, LookupError) as error:
                # The header parser answers some malformed addresses with IndexError.
                results.append(SendResult(error=f"not a sendable mail: {error}", permanent=True))
                continue
            day = f"{mail.queued_at:%Y-%m-%d}"
            stem = f"{mail.email_type}-{mail.key}"
            try:
                (self._folder / day).mkdir(parents=True, exist_ok=True)
                _write_whole(self._folder / day / f"{stem}.html", mail.html.encode())
                _write_whole(self._folder / day / f"{stem}.eml", message.as_bytes())
            except OSError as error:
                results.append(SendResult(error=f"can't write to the outbox folder: {error}"))
                continue
            written.append(
                IndexEntry(
                    day=day,
                    key=mail.key,
                    email_type=mail.email_type,
                    subject=mail.subject,
                    recipient=mail.recipient,
                    sent_at=mail.sent_at.isoformat(),
                    file=stem,
                )
            )
            results.append(SendResult(provider_message_id=mail.message_id))
        try:
            append_entries(self._folder, written)
        except OSError as error:
            raise ProviderUnavailable(f"can't write to the outbox folder: {error}") from error
        return results

    def finish(self) -> None:
        """Bring the index pages up to date; costs one look at each day's folder when nothing is new."""
        try:
            refresh_index(self._folder)
        except OSError as error:
            # The mails are written and recorded; the next drain finds the pages stale and makes them.
            log.warning("outbox index not refreshed", folder=str(self._folder), error=str(error))


def build_message(mail: Mail) -> EmailMessage:
    """The mail as a MIME message: plain text, with HTML as the alternative.

    Raises
    ------
    ValueError, email.errors.MessageError, IndexError
        If an address or a header can't be written as such.
    """
    message = EmailMessage(policy=policy.SMTP.clone(utf8=False))
    name, address = parseaddr(mail.sender)
    message["From"] = Address(display_name=name, addr_spec=address)
    message["To"] = Address(display_name=one_line(mail.recipient_name), addr_spec=mail.recipient)
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(mail.sent_at)
    message["Message-ID"] = mail.message_id
    for header, value in mail.headers:
        message[header] = value
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    return message


def _write_whole(path: Path, content: bytes) -> None:
    # The event's row is locked while its mail is written, so nobody else has this temporary name open.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
