"""All that reading from one Stripe account takes, made from the settings.

Belongs here: putting the parts together. Does not belong here: what each does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import Clock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.changes import Changes
from apex_pipelines.stripe.client import connect, is_live
from apex_pipelines.stripe.reading import Reader


@dataclass(frozen=True, slots=True)
class ReadAccount:
    """Both stores, and the account that is read into them."""

    engine: sa.Engine
    client: Client
    reader: Reader
    changes: Changes


@contextmanager
def read_account(settings: Settings, clock: Clock, *, query_origin: str) -> Iterator[ReadAccount]:
    """Connections for as long as something is read.

    Raises
    ------
    StripeSettingsError
        If the settings have no key that may be used.
    """
    reader = Reader(connect(settings), clock, livemode=is_live(settings))
    engine = postgres.create_engine(settings)
    client = clickhouse.connect(settings, query_origin=query_origin)
    try:
        changes = Changes(engine, client, reader, concurrency=settings.stripe_concurrency)
        yield ReadAccount(engine, client, reader, changes)
    finally:
        client.close()
        engine.dispose()
