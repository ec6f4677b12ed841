"""Disks that are full, read-only or broken: nothing is acknowledged that is not safe, and reading goes on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.settings import Settings
from ingest_api.spool import segments, writing
from ingest_api.spool.group_commit import SpoolUnavailable, SpoolWriter
from tests.conftest import mounted
from tests.ingest.books import stored, wait_until_landed
from tests.ingest.conftest import Account, Api, LoaderProcess, event
from tests.ingest.insistent_clients import InsistentClients
from tests.ingest.spool_files import spooled
from tests.ingest.test_spool import LIMITS, all_payloads, run_writer
from tests.ingest.waiting import until

MIB = 1 << 20
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NOTHING_MORE_IS_WRITTEN = (2).to_bytes(4, sys.byteorder)

NewApi = Callable[..., Api]


@pytest.fixture
def full_disk(settings: Settings) -> Iterator[Path]:
    """A disk of 4 MiB under the data folder."""
    with mounted(settings.home_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs") as folder:
        yield folder


@pytest.fixture
def real_disk(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system under the data folder, which can fail as one on a broken drive does."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("mkfs.ext4 is not installed here")
    with mounted(settings.home_path, "-o", "loop", str(image)) as folder:
        yield folder


def assert_only_reading_works(api: Api, account: Account, name: str) -> None:
    """Events are refused with the documented answer; what needs no disk works."""
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        for path, body in (
            ("/api/usage/track", event(event_id=name)),
            ("/api/usage/batch", [event(event_id=f"{name}-1"), event(event_id=f"{name}-2")]),
        ):
            begun = time.monotonic()
            answer = http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert time.monotonic() - begun < 2
        assert http.post("/api/usage/track", json=event(metric_type="nonsense")).status_code == 422
        for path in ("/health", "/metrics", "/openapi.json"):
            assert http.get(path).status_code == 200, path
        # A load balancer should send clients elsewhere.
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["checks"]["spool"]["ok"]) == (503, False)


def test_a_full_disk_refuses_and_the_loader_makes_room_again(
    full_disk: Path,
    warehouse: Client,
    new_api: NewApi,
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    log = full_disk / "api.log"  # what tells of it can't be written either
    api = new_api(log=log, workers=2, APEX_SPOOL_SEGMENT_MAX_BYTES="200000")
    load = InsistentClients(api.url, account, padding=2_000)
    httpx.get(f"{api.url}/openapi.json")
    pids = api.worker_pids()
    with load.running():
        until(lambda: load.refusals > 100)
        before, known = api.resident(), len(load.usage.acknowledged)
        time.sleep(2)
        assert len(load.usage.acknowledged) - known < 20  # the last bytes
        assert api.resident() - before < 16 * MIB
        assert httpx.get(f"{api.url}/health").status_code == 200
        known = len(load.usage.acknowledged)
        new_loader()
        until(lambda: len(load.usage.acknowledged) > known + 200, 30)
    assert api.worker_pids() == pids
    api.stop()
    wait_until_landed(settings.spool_dir)
    counts = stored(warehouse)
    assert load.usage.acknowledged <= set(counts) <= load.usage.sent
    assert not (settings.spool_dir / "damaged").exists()


def test_a_disk_that_was_full_takes_events_as_soon_as_there_is_room(
    full_disk: Path, new_api: NewApi, account: Account, settings: Settings
) -> None:
    api = new_api()
    known = httpx.post(f"{api.url}/api/usage/track", json=event(event_id="before"), headers=account.bearer)
    assert known.status_code == 200
    until(lambda: not list(settings.spool_dir.glob("*.open")))
    filler = full_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    assert_only_reading_works(api, account, "refused")
    again = httpx.post(f"{api.url}/api/usage/track", json=event(event_id="before"), headers=account.bearer)
    assert again.json()["duplicate"] is True  # that one is safe, and it is told so
    filler.unlink()
    assert httpx.get(f"{api.url}/ready").status_code == 200  # also when no event comes to find out
    after = httpx.post(f"{api.url}/api/usage/track", json=event(event_id="after"), headers=account.bearer)
    assert after.status_code == 200
    assert [row.event_id for row in spooled(settings.spool_dir)] == ["before", "after"]


def test_a_disk_that_turns_read_only_acknowledges_nothing_more(
    real_disk: Path, new_api: NewApi, account: Account, settings: Settings
) -> None:
    """As the kernel does it to a disk on which it has seen an error."""
    api = new_api(workers=2)
    load = InsistentClients(api.url, account)
    with load.running():
        until(lambda: len(load.usage.acknowledged) > 200)
        subprocess.run(["mount", "-o", "remount,abort", str(real_disk)], check=True)
        until(lambda: load.refusals > 50)
        known = len(load.usage.acknowledged)
        before = api.resident()
        assert_only_reading_works(api, account, "read-only")
        assert len(load.usage.acknowledged) == known
        assert api.resident() - before < 16 * MIB
    assert_survived(api, load, settings)


def test_a_disk_that_fails_to_sync_acknowledges_nothing_more(
    real_disk: Path, new_api: NewApi, account: Account, settings: Settings
) -> None:
    """Input and output errors on every call, from one moment on, as of a drive that was pulled out."""
    api = new_api()
    load = InsistentClients(api.url, account)
    with load.running():
        until(lambda: len(load.usage.acknowledged) > 200)
        descriptor = os.open(real_disk, os.O_RDONLY)
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _NOTHING_MORE_IS_WRITTEN)
        os.close(descriptor)
        until(lambda: load.refusals > 50)
        known = len(load.usage.acknowledged)
        before = api.resident()
        assert_only_reading_works(api, account, "broken")
        assert len(load.usage.acknowledged) == known
        assert api.resident() - before < 16 * MIB
    assert_survived(api, load, settings)


def assert_survived(api: Api, load: InsistentClients, settings: Settings) -> None:
    """After a crash and a repair of the disk, all that was acknowledged is on it."""
    api.kill()
    image = settings.home_path.parent / "disk.img"
    # The kernel may need a moment to close what the killed processes had open.
    until(lambda: subprocess.run(["umount", str(settings.home_path)], check=False).returncode == 0)
    subprocess.run(["mount", "-o", "loop", str(image), str(settings.home_path)], check=True)
    api.start()
    answer = httpx.post(
        f"{api.url}/api/usage/track", json=event(event_id="after"), headers=load.account.bearer
    )
    assert answer.status_code == 200
    found = {row.event_id for row in spooled(settings.spool_dir)}
    assert load.usage.acknowledged <= found <= load.usage.sent | {"after"}
    api.stop()


@pytest.mark.parametrize("module", ["ingest_api", "ingest_api.loader"])
def test_a_read_only_disk_is_said_in_one_line_at_the_start(
    module: str, full_disk: Path, settings: Settings, process_environment: Callable[..., dict[str, str]]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=process_environment(APEX_JWT_SECRET="s" * 32), capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert str(settings.home_path) in line
    assert "ead-only" in line


def test_after_a_failed_sync_the_segment_is_given_up_and_another_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may call pages clean that it failed to write, so a second sync proves nothing.

    A drive that fails once and then works can't be had here, so the call itself fails.
    """
    real = writing.sync
    names: list[str] = []

    async def use(writer: SpoolWriter) -> None:
        await writer.append(b"one", 1)
        names.extend(path.stem for path in segments.list_segments(tmp_path, segments.OPEN))

        def fails_once(_descriptor: int) -> None:
            monkeypatch.setattr(writing, "sync", real)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(writing, "sync", fails_once)
        with pytest.raises(SpoolUnavailable):
            await writer.append(b"never acknowledged", 1)
        await writer.append(b"two", 1)
        names.extend(path.stem for path in segments.list_segments(tmp_path, segments.OPEN))

    run_writer(tmp_path, LIMITS, use)
    assert len(set(names)) == 2
    assert all_payloads(tmp_path) == [b"one", b"two"]


def test_a_segment_whose_folder_can_not_be_synced_closes_its_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a file that is closed may be another's at once, which a second close would hit."""
    others: list[int] = []

    def fails(_folder: Path) -> None:
        others.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        os.write(others[0], b"x" * 1_000)
        raise OSError(errno.EMFILE, "Too many open files")

    async def use(writer: SpoolWriter) -> None:
        await writer.append(b"one", 1)
        monkeypatch.setattr(writing, "sync_folder", fails)

    run_writer(tmp_path, LIMITS, use)
    assert os.fstat(others[0]).st_size == 1_000
    os.close(others[0])
    assert all_payloads(tmp_path) == [b"one"]
