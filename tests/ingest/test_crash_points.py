"""SIGKILL at every point between two effects: write, sync, seal, answer, insert, proof, removal."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import sqlalchemy as sa

from apex_pipelines.settings import Settings
from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame
from ingest_api.spool.segments import OPEN, SEALED, new_segment_name
from tests.ingest.books import assert_each_counts_once, stored, wait_until_landed
from tests.ingest.conftest import Account, Api, LoaderProcess, Warehouse
from tests.ingest.insistent_clients import InsistentClients
from tests.ingest.kill_at import POINTS, Point, Role, Trap
from tests.ingest.kill_plan import NAMED_ROUNDS
from tests.ingest.spool_files import accepted
from tests.ingest.webhook_bodies import SECRETS
from tests.warehouse_models.conftest import Models

UNDECODABLE = b"\xc1 no msgpack"


def test_each_point_has_one_name() -> None:
    assert len({(point.role, point.name) for point in POINTS}) == len(POINTS)
    assert {point.role for point in POINTS} == set(Role)


@pytest.mark.parametrize("rounds", NAMED_ROUNDS)
def test_a_kill_at_any_named_point_loses_nothing_and_counts_nothing_twice(
    rounds: int,
    new_warehouse: Callable[..., Warehouse],
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
    engine: sa.Engine,
    tmp_path: Path,
    sigkills: Counter[str],
) -> None:
    trap = Trap(tmp_path / "trap")
    launcher = ("tests.ingest.kill_at", str(trap.path))
    warehouse = new_warehouse(launcher=(*launcher, "warehouse"))
    # Small segments, so that every point is passed many times a second.
    api = new_api(workers=2, launcher=(*launcher, "worker"), APEX_SPOOL_SEGMENT_MAX_AGE_MS="50", **SECRETS)
    loader = new_loader(launcher=(*launcher, "loader"), APEX_LOADER_POLL_MS="10")
    baits = Baits(settings.spool_dir)
    exchanges: dict[str, InsistentClients] = {}
    for round_ in range(rounds):
        for point in POINTS:
            name = f"{round_} {point.name}"
            clients = InsistentClients(api.url, account, name, with_hooks=True, pause=0.03)
            exchanges[name] = clients
            if point.role is Role.LOADER:
                # It finds the baits when it starts, so that they are in doubt.
                loader.stop()
                baits.lay(name)
            elif not loader.is_running:
                loader.start()
            trap.set(point)
            with clients.running():
                if point.role is Role.LOADER:
                    loader.start()
                wait_until_sprung(trap, point)
                sigkills[f"{point.role.name.lower()} at a point"] += 1
                if point.role is Role.WAREHOUSE:
                    warehouse.start()
                wait_until_served(clients)
    if not loader.is_running:
        loader.start()
    api.stop()
    wait_until_landed(settings.spool_dir)
    client = warehouse.connect()
    counts = stored(client)
    for name, clients in exchanges.items():
        there = {event_id for event_id in counts if event_id.startswith(f"{clients.name}-")}
        assert clients.usage.acknowledged <= there <= clients.usage.sent, name
    assert set(counts) <= baits.whole.union(*(clients.usage.sent for clients in exchanges.values()))
    assert baits.whole <= set(counts)
    assert_each_counts_once(Models(warehouse.settings, client, tmp_path), set(counts))
    letters = client.query("select batch_id, batch_row from raw.usage_dead_letters").result_rows
    assert sorted(map(tuple, letters)) == sorted((batch_id, 1) for batch_id in baits.undecodable)
    assert baits.torn_pieces() == Counter(baits.torn)
    client.close()
    with engine.connect() as connection:
        hooks = set(connection.scalars(sa.text("select event_id from webhook_inbox")))
    for clients in exchanges.values():
        assert clients.hooks.acknowledged <= hooks
    assert hooks <= set().union(*(clients.hooks.sent for clients in exchanges.values()))


def wait_until_sprung(trap: Trap, point: Point) -> None:
    """Until a process died at the point, and was seen to be gone."""
    deadline = time.monotonic() + 30
    while (victim := trap.victim()) is None:
        assert time.monotonic() < deadline, f"nothing came to {point.name!r}"
        time.sleep(0.01)
    while not is_dead(victim):
        assert time.monotonic() < deadline, f"{victim} lives on after {point.name!r}"


def wait_until_served(clients: InsistentClients) -> None:
    """Until each kind of thing that they send was acknowledged."""
    deadline = time.monotonic() + 30
    while not clients.are_heard():
        assert time.monotonic() < deadline, "nothing was acknowledged"
        time.sleep(0.01)


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Baits:
    """Spool files as crashes and bad disks leave them, so that the loader has to recover and to bury."""

    def __init__(self, folder: Path) -> None:
        self.whole: set[str] = set()
        self.undecodable: list[str] = []
        self.torn: list[bytes] = []
        self._folder = folder

    def lay(self, name: str) -> None:
        """One open segment with a torn tail, whose worker is gone; one sealed, with an undecodable frame."""
        ids = [f"bait {name} {number}" for number in range(2)]
        self.whole.update(ids)
        good = [encode_frame(msgspec.msgpack.encode([accepted(event_id)]), 0, 1) for event_id in ids]
        torn = encode_frame(f"torn {name}".encode(), 1, 1)[:-1]
        self.torn.append(torn)
        self._write(OPEN, FILE_HEADER + good[0] + torn)
        bad = encode_frame(UNDECODABLE, 1, 1)
        self.undecodable.append(self._write(SEALED, FILE_HEADER + good[1] + bad + encode_footer(2)))

    def torn_pieces(self) -> Counter[bytes]:
        """The pieces of the baits that were kept aside; workers that died leave some as well."""
        folder = self._folder / "damaged"
        reports = map(json.loads, (folder / "report.ndjson").read_text().splitlines())
        pieces = ((folder / name).read_bytes() for name in {report["kept_in"] for report in reports})
        return Counter(piece for piece in pieces if b"torn " in piece)

    def _write(self, suffix: str, data: bytes) -> str:
        batch_id = new_segment_name("w9")
        path = self._folder / f"{batch_id}.new"
        path.write_bytes(data)
        path.rename(path.with_suffix(suffix))
        return batch_id
