"""SIGKILL of PostgreSQL: known keys go on, telemetry does not notice, no acknowledged webhook is lost."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
import sqlalchemy as sa

from apex_pipelines.platform import postgres
from apex_pipelines.settings import Settings
from tests.ingest.books import assert_each_counts_once, stored, wait_until_landed
from tests.ingest.conftest import Account, Api, LoaderProcess, event, kill_postgres
from tests.ingest.insistent_clients import QUANTITY, InsistentClients
from tests.ingest.kill_plan import RANDOM_KILLS
from tests.ingest.waiting import until
from tests.ingest.webhook_bodies import SECRETS
from tests.warehouse_models.conftest import Models


@pytest.fixture
def engine(own_postgres: Settings) -> Iterator[sa.Engine]:
    """Customers and API stand on the server that is killed."""
    engine = postgres.create_engine(own_postgres)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("kills", RANDOM_KILLS["postgres"])
def test_killing_postgres_stops_no_event_of_a_known_key_and_loses_no_acknowledged_webhook(
    kills: int,
    own_postgres: Settings,
    engine: sa.Engine,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    new_account: Callable[..., Account],
    settings: Settings,
    models: Models,
    sigkills: Counter[str],
) -> None:
    pick = random.Random(6)
    known, *strangers = (new_account(f"customer {number}") for number in range(kills + 1))
    api = new_api(APEX_API_KEY_CACHE_SECONDS="0.2", **SECRETS)
    new_loader()
    clients = InsistentClients(api.url, known, with_hooks=True)
    usage, hooks = clients.usage, clients.hooks
    with clients.running():
        until(clients.are_heard)
        for stranger in strangers:
            time.sleep(pick.uniform(0.1, 1.0))
            kill_postgres(own_postgres)
            sigkills["postgres"] += 1
            heard = len(usage.acknowledged)
            assert track_status(api, stranger, "meanwhile") == 503
            until(lambda heard=heard: len(usage.acknowledged) > heard + 50)
            postgres.start_embedded(own_postgres)
            until(lambda stranger=stranger: track_status(api, stranger, f"of {stranger.key_id}") == 200)
            stored_hooks = len(hooks.acknowledged)
            until(lambda stored_hooks=stored_hooks: len(hooks.acknowledged) > stored_hooks)
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(models.client)
    assert set(counts) == usage.acknowledged | {f"of {stranger.key_id}" for stranger in strangers}
    assert usage.acknowledged == usage.sent
    assert_each_counts_once(models, set(counts))
    with engine.connect() as connection:
        inbox = connection.scalars(sa.text("select event_id from webhook_inbox")).all()
    assert hooks.acknowledged <= set(inbox) <= hooks.sent
    assert len(inbox) == len(set(inbox))


def track_status(api: Api, account: Account, event_id: str) -> int:
    body = event(event_id=event_id, quantity=QUANTITY)
    return httpx.post(f"{api.url}/api/usage/track", json=body, headers=account.bearer, timeout=20).status_code
