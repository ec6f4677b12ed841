"""The sending half of an import: accounts and keys for the file's customers, then their events, concurrently.

Belongs here: who is created, which key carries what, what is confirmed. Does not belong here: how a request
is sent and repeated (`platform/ingest_client.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import msgspec
import sqlalchemy as sa

from apex_pipelines.billing.store import NewSubscription, subscribe_many, sync_plans
from apex_pipelines.customers.keys import issue_keys, revoke_keys_labelled
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.customers.store import NewCustomer, create_customers, customer_id_for
from apex_pipelines.importing.mapping import Mapping
from apex_pipelines.importing.state import ImportState, PendingCustomer
from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.ingest_client import ClientCounts, IngestClient, RetryPolicy
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.settings import Settings

log = get_logger(__name__)

_CUSTOMERS_AT_ONCE = 1_000
# Keys of a run that was killed and never resumed end by themselves.
_KEY_LIFE = timedelta(days=1)

_Job = tuple[PendingCustomer, str]


class Delivery:
    """Sends what an import has staged.

    Parameters
    ----------
    label : str
        Of the keys of this import; open ones with it are revoked before and after.
    on_confirmed : callable
        Told the number of confirmed events, over all runs, after each batch.
    """

    def __init__(
        self,
        settings: Settings,
        engine: sa.Engine,
        state: ImportState,
        mapping: Mapping,
        *,
        label: str,
        historical: bool,
        clock: Clock,
        retry: RetryPolicy | None,
        concurrency: int,
        on_confirmed: Callable[[int], None],
    ) -> None:
        self.client_counts = ClientCounts()
        self._settings = settings
        self._engine = engine
        self._state = state
        self._mapping = mapping
        self._label = label
        self._scopes = (KeyScope.INGEST, KeyScope.HISTORICAL) if historical else (KeyScope.INGEST,)
        self._clock = clock
        self._retry = retry
        self._concurrency = concurrency
        self._on_confirmed = on_confirmed
        self._confirmed = state.delivery_counts().confirmed

    async def run(self) -> None:
        """Send everything that is not confirmed yet.

        Raises
        ------
        IngestError
            If the API refuses or stays away; what was confirmed before is recorded.
        """
        self._revoke_keys()
        try:
            async with IngestClient(
                self._settings.api_url,
                concurrency=self._concurrency,
                retry=self._retry,
                max_batch_events=self._settings.api_max_batch_events,
            ) as client:
                self.client_counts = client.counts
                jobs: asyncio.Queue[_Job | None] = asyncio.Queue(maxsize=2 * _CUSTOMERS_AT_ONCE)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._open_accounts(jobs))
                        for _ in range(self._concurrency):
                            tasks.create_task(self._work(client, jobs))
                except BaseExceptionGroup as group:
                    # The others were cancelled because of the first, which says why.
                    raise group.exceptions[0] from None
        finally:
            self._revoke_keys()

    async def _open_accounts(self, jobs: asyncio.Queue[_Job | None]) -> None:
        """Create customers and keys a chunk ahead of those who send."""
        after = -1
        while chunk := self._state.pending(after, _CUSTOMERS_AT_ONCE):
            after = chunk[-1].number
            # In a thread: the database works while the requests go on.
            keys = await asyncio.to_thread(self._accounts_and_keys, chunk)
            for job in zip(chunk, keys, strict=True):
                await jobs.put(job)
        for _ in range(self._concurrency):
            await jobs.put(None)

    def _accounts_and_keys(self, chunk: list[PendingCustomer]) -> list[str]:
        now, mapping = self._clock.now(), self._mapping
        new = [
            NewCustomer(
                name=mapping.customers.name.format(customer=customer.ref),
                email=customer.email or f"{customer_id_for(mapping.source, customer.ref)}@imported.invalid",
                source=mapping.source,
                external_ref=customer.ref,
                created_at=customer.first_event_at,
                marketing_consent=mapping.customers.marketing_consent,
            )
            for customer in chunk
        ]
        with self._engine.begin() as connection:
            ids = create_customers(connection, new, now)
            if mapping.customers.plan is not None:
                sync_plans(connection)
                subscribe_many(
                    connection,
                    [
                        NewSubscription(customer_id, mapping.customers.plan, customer.first_event_at)
                        for customer_id, customer in zip(ids, chunk, strict=True)
                    ],
                    now,
                )
            keys = issue_keys(
                connection, ids, now, label=self._label, scopes=self._scopes, expires_at=now + _KEY_LIFE
            )
        return [key.plaintext for key in keys]

    async def _work(self, client: IngestClient, jobs: asyncio.Queue[_Job | None]) -> None:
        while (job := await jobs.get()) is not None:
            customer, key = job
            position, most = customer.confirmed, self._settings.api_max_batch_events
            more = True
            while more and (staged := self._state.events(customer.number, position, most)):
                results = await client.send(key, [msgspec.Raw(event.payload) for event in staged])
                self._state.confirm(customer.number, staged, results)
                position = staged[-1].position + 1
                more = len(staged) == most  # most customers have few events: no second look for them
                self._confirmed += len(staged)
                self._on_confirmed(self._confirmed)

    def _revoke_keys(self) -> None:
        with self._engine.begin() as connection:
            revoked = revoke_keys_labelled(connection, self._label, self._clock.now())
        log.debug("keys of the import revoked", label=self._label, keys=revoked)
