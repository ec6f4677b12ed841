"""Storing webhooks in PostgreSQL's inbox, each once.

Belongs here: the one statement. Does not belong here: signatures, HTTP, processing what was stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ingest_api.database import Connection, DatabaseThread

_STORE = """
insert into webhook_inbox (provider, event_id, event_type, payload, received_at)
values (%s, %s, %s, %s, %s)
on conflict (provider, event_id) do nothing
"""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An event of a provider, its signature checked; `payload` is what was signed."""

    provider: Literal["stripe", "resend"]
    event_id: str
    event_type: str
    payload: bytes


class WebhookInbox:
    """The inbox, written to in its own thread."""

    def __init__(self, database: DatabaseThread) -> None:
        self._database = database

    async def store(self, webhook: Webhook, now: datetime) -> bool:
        """Store and commit; False when it was there already.

        Raises
        ------
        DatabaseAway
            If it is not known to be stored; the provider must send it again.
        """
        row = (webhook.provider, webhook.event_id, webhook.event_type, webhook.payload, now)

        def insert(connection: Connection) -> bool:
            return connection.execute(_STORE, row).rowcount == 1

        return await self._database.run(insert)
