"""SIGKILL at any moment: what was acknowledged is stored, what is stored was sent, nothing stands twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from apex_pipelines.settings import Settings
from ingest_api.loader_status import read_status
from tests.ingest.books import assert_each_counts_once, stored, wait_until_landed
from tests.ingest.conftest import Account, Api, LoaderProcess, Warehouse
from tests.ingest.insistent_clients import InsistentClients
from tests.ingest.kill_plan import LONG_KILLS, RANDOM_KILLS
from tests.ingest.spool_files import write_segment
from tests.ingest.waiting import until
from tests.warehouse_models.conftest import Models


def test_the_long_form_kills_more_than_three_hundred_times() -> None:
    assert LONG_KILLS >= 300


@pytest.mark.parametrize("kills", RANDOM_KILLS["server"])
def test_killing_the_api_loses_no_acknowledged_event(
    kills: int,
    models: Models,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    sigkills: Counter[str],
) -> None:
    pick = random.Random(1)
    api = new_api(workers=2)
    new_loader()
    clients = InsistentClients(api.url, account)
    with clients.running():
        for _ in range(kills):
            time.sleep(pick.uniform(0.2, 1.5))
            api.kill()
            sigkills["server"] += 1
            api.start()
        time.sleep(0.5)
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(models.client)
    assert len(clients.usage.acknowledged) > 100
    assert clients.usage.acknowledged <= set(counts) <= clients.usage.sent
    assert_each_counts_once(models, set(counts))


@pytest.mark.parametrize("kills", RANDOM_KILLS["workers"])
def test_a_killed_worker_is_replaced_and_an_orphaned_one_ends(
    kills: int,
    models: Models,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    sigkills: Counter[str],
) -> None:
    pick = random.Random(5)
    api = new_api(workers=2)
    clients = InsistentClients(api.url, account)
    with clients.running():
        for _ in range(kills):
            time.sleep(pick.uniform(0.3, 1.0))
            until(lambda: len(api.worker_pids()) == 2)
            os.kill(pick.choice(api.worker_pids()), signal.SIGKILL)
            sigkills["worker"] += 1
        until(lambda: len(api.worker_pids()) == 2)
        # Only the parent dies: its workers must let go of the port, or nothing could be started again.
        assert api.process is not None
        api.process.kill()
        api.process.wait(10)
        api.start()
        time.sleep(0.5)
    api.stop()
    new_loader()
    wait_until_landed(settings.spool_dir)
    counts = stored(models.client)
    assert clients.usage.acknowledged <= set(counts) <= clients.usage.sent
    assert_each_counts_once(models, set(counts))


@pytest.mark.parametrize("kills", RANDOM_KILLS["loader"])
def test_killing_the_loader_stores_every_acknowledged_event_exactly_once(
    kills: int,
    models: Models,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    sigkills: Counter[str],
) -> None:
    pick = random.Random(2)
    # Small segments and a quick poll: more moments at which a kill hurts.
    api = new_api(APEX_SPOOL_SEGMENT_MAX_AGE_MS="50")
    loader = new_loader(APEX_LOADER_POLL_MS="10", APEX_LOADER_MAX_ROWS_PER_INSERT="50")
    clients = InsistentClients(api.url, account)
    with clients.running():
        for _ in range(kills):
            # Let it get to work first: a kill while it starts up proves nothing.
            before = segments_loaded(settings)
            until(lambda before=before: segments_loaded(settings) > before, 20)
            time.sleep(pick.uniform(0.0, 1.0))
            loader.kill()
            sigkills["loader"] += 1
            loader.start()
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(models.client)
    assert len(clients.usage.acknowledged) > 100
    assert counts == Counter(clients.usage.acknowledged)
    assert clients.duplicates == 0
    assert_each_counts_once(models, set(counts))


def segments_loaded(settings: Settings) -> int:
    """By all loaders of this spool, as the last of them says."""
    status = read_status(settings.spool_dir)
    return status.segments if status is not None else 0


@pytest.mark.parametrize("kills", RANDOM_KILLS["warehouse and loader"])
def test_killing_warehouse_and_loader_in_turn_stores_every_event_exactly_once(
    kills: int,
    new_warehouse: Callable[..., Warehouse],
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    tmp_path: Path,
    sigkills: Counter[str],
) -> None:
    pick = random.Random(3)
    front = new_warehouse()
    api = new_api(APEX_SPOOL_SEGMENT_MAX_AGE_MS="50")
    loader = new_loader(APEX_LOADER_POLL_MS="10")
    clients = InsistentClients(api.url, account)
    with clients.running():
        for _ in range(kills):
            time.sleep(pick.uniform(0.5, 2.0))
            front.kill()
            sigkills["warehouse"] += 1
            if pick.random() < 0.5:
                loader.kill()
                sigkills["loader"] += 1
                loader.start()
            front.start()
    api.stop()
    wait_until_landed(settings.spool_dir)
    client = front.connect()
    assert stored(client) == Counter(clients.usage.acknowledged)
    assert_each_counts_once(Models(front.settings, client, tmp_path), clients.usage.acknowledged)
    client.close()


@pytest.mark.parametrize("kills", RANDOM_KILLS["tiny segments"])
def test_killing_loader_and_warehouse_over_a_backlog_of_tiny_segments_stores_each_row_once(
    kills: int,
    new_warehouse: Callable[..., Warehouse],
    new_loader: Callable[..., LoaderProcess],
    settings: Settings,
    engine: sa.Engine,
    tmp_path: Path,
    sigkills: Counter[str],
) -> None:
    """Many segments share an insert, so that a kill leaves many of them in doubt at once."""
    pick = random.Random(4)
    front = new_warehouse()
    settings.spool_dir.mkdir(parents=True)
    sent: set[str] = set()
    loader = new_loader(APEX_LOADER_POLL_MS="10", APEX_LOADER_MAX_ROWS_PER_INSERT="1500")
    for turn in range(kills):
        for number in range(800):
            ids = [f"{turn}-{number}-{row}" for row in range(4)]
            sent.update(ids)
            write_segment(settings.spool_dir, ids)
        time.sleep(pick.uniform(0.2, 1.5))
        loader.kill()
        sigkills["loader"] += 1
        if turn % 2:
            front.kill()
            sigkills["warehouse"] += 1
            front.start()
        loader.start()
    wait_until_landed(settings.spool_dir)
    client = front.connect()
    assert stored(client) == Counter(sent)
    assert_each_counts_once(Models(front.settings, client, tmp_path), sent)
    client.close()
