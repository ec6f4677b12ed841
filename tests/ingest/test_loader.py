"""What was acknowledged lands in ClickHouse, each row once, whatever is in its way."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.settings import Settings
from ingest_api import loader
from ingest_api.loader import LoaderAlreadyRunning
from ingest_api.loader_status import LoaderStatus, read_status
from ingest_api.raw_events import Batch, RawEvents
from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame
from ingest_api.spool.segments import SEALED, list_segments, new_segment_name
from ingest_api.spool.writing import SegmentFile
from tests.conftest import free_port
from tests.ingest.conftest import Account, Api, LoaderProcess, event
from tests.ingest.loading import loading, rows, wait_until_empty
from tests.ingest.spool_files import accepted, spool
from tests.ingest.waiting import until


def test_each_column_lands_as_it_was_accepted(settings: Settings, warehouse: Client) -> None:
    text = 'naïve 😀 "quoted"\t\\'
    correction = accepted(
        text, metric_type="mediated_revenue", quantity=-(10**15), event_time_ms=855_878_400_000,
        metadata='{"k":"ü"}', corrects_event_id="evt-0", correction_reason=text, historical=True,
    )  # fmt: skip
    batch_id = spool(settings.spool_dir, [accepted("a")], [correction])
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    stored = warehouse.query(
        "select customer_id, event_id, metric_type, quantity, toUnixTimestamp64Milli(event_time), "
        "toUnixTimestamp64Micro(accepted_at), metadata, corrects_event_id, correction_reason, "
        "historical, batch_id, batch_row from raw.usage_events order by batch_row"
    ).result_rows
    assert [tuple(row) for row in stored] == [
        (*msgspec.structs.astuple(accepted("a")), batch_id, 0),
        (*msgspec.structs.astuple(correction), batch_id, 1),
    ]


def test_a_segment_that_was_loaded_in_part_is_completed_and_not_repeated(
    settings: Settings, warehouse: Client
) -> None:
    events = [accepted(f"evt-{number}") for number in range(10)]
    partial = spool(settings.spool_dir, events[:4], events[4:])
    whole = spool(settings.spool_dir, events)
    table = RawEvents(settings, "tests")
    table.insert([Batch(partial, [1, 5], [events[1], events[5]]), Batch(whole, range(10), events)])
    table.disconnect()
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    expected = [(f"evt-{row}", batch_id, row) for batch_id in (partial, whole) for row in range(10)]
    assert rows(warehouse) == sorted(expected, key=lambda row: (row[1], row[2]))


def test_a_row_that_the_table_refuses_goes_to_the_dead_letters_and_the_rest_lands(
    settings: Settings, warehouse: Client
) -> None:
    good = [accepted(f"evt-{number}") for number in range(20)]
    wild = accepted("wild", quantity=2**63)  # no Int64
    batch_id = spool(settings.spool_dir, good[:10], [*good[10:15], wild, *good[15:]])
    other = spool(settings.spool_dir, good)
    settings.spool_dir.joinpath(f"{other}{SEALED}").touch()
    undecodable = SegmentFile.create(settings.spool_dir, "w1")
    undecodable.append([(b"\xc1 no msgpack", 3), (msgspec.msgpack.encode([good[0]]), 1)])
    undecodable.seal()
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    assert len(rows(warehouse)) == 41
    assert (good[0].event_id, undecodable.batch_id, 3) in rows(warehouse)
    letters = warehouse.query(
        "select batch_id, batch_row, payload, reason from raw.usage_dead_letters"
    ).result_rows
    found = {(batch, row): (payload, reason) for batch, row, payload, reason in letters}
    assert set(found) == {(batch_id, 15), (undecodable.batch_id, 0)}
    assert msgspec.json.decode(found[batch_id, 15][0], type=AcceptedEvent) == wild
    assert found[undecodable.batch_id, 0][0].startswith("base64:")
    assert all(reason for _, reason in found.values())


def test_an_outage_of_clickhouse_is_waited_out(
    settings: Settings, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = settings.clickhouse_url
    batch_id = spool(settings.spool_dir, [accepted("a"), accepted("b")])
    settings.clickhouse_url = f"http://default:x@127.0.0.1:{free_port()}"
    with loading(settings):
        time.sleep(0.6)
        assert list_segments(settings.spool_dir, SEALED)
        settings.clickhouse_url = there
        wait_until_empty(settings.spool_dir)
    assert rows(warehouse) == [("a", batch_id, 0), ("b", batch_id, 1)]


def test_damaged_bytes_are_set_aside_and_the_rest_lands(settings: Settings, warehouse: Client) -> None:
    batch_id = spool(settings.spool_dir, [accepted("a")], [accepted("b"), accepted("c")], [accepted("d")])
    path = settings.spool_dir / f"{batch_id}{SEALED}"
    broken = bytearray(path.read_bytes())
    broken[broken.index(b"\xa1b") + 1] ^= 1  # in the frame of b and c
    path.write_bytes(broken)
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    assert rows(warehouse) == [("a", batch_id, 0), ("d", batch_id, 3)]
    report = (settings.spool_dir / "damaged" / "report.ndjson").read_text()
    assert "checksum does not match" in report


def test_a_second_loader_says_why_it_does_not_start(settings: Settings, warehouse: Client) -> None:
    batch_id = spool(settings.spool_dir, [accepted("a")])
    with loading(settings):
        wait_until_empty(settings.spool_dir)
        with pytest.raises(LoaderAlreadyRunning, match="another loader"):
            loader.run(settings, threading.Event())
    assert rows(warehouse) == [("a", batch_id, 0)]


def test_many_small_segments_share_an_insert(settings: Settings, warehouse: Client) -> None:
    for number in range(30):
        spool(settings.spool_dir, [accepted(f"evt-{number}")])
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    parts = warehouse.query("select uniqExact(loaded_at), count() from raw.usage_events").result_rows
    assert tuple(parts[0]) == (1, 30)


def test_an_insert_takes_no_more_rows_than_it_is_told(settings: Settings, warehouse: Client) -> None:
    settings.loader_max_rows_per_insert = 25
    for number in range(10):
        spool(settings.spool_dir, [accepted(f"evt-{number}-{row}") for row in range(10)])
    big = spool(settings.spool_dir, [accepted(f"big-{row}") for row in range(60)])
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    groups = warehouse.query("select count() from raw.usage_events group by loaded_at").result_rows
    assert sorted(count for (count,) in groups) == [20, 20, 20, 20, 20, 60]  # a segment is never divided
    assert sum(1 for row in rows(warehouse) if row[1] == big) == 60


def test_thousands_of_segments_share_an_insert_that_was_torn(settings: Settings, warehouse: Client) -> None:
    """As a kill leaves an insert of several blocks: some batches whole, one in part, the others missing."""
    names = [spool(settings.spool_dir, [accepted(f"{n}-{row}") for row in range(3)]) for n in range(400)]
    for number in range(400, 3_000):
        name = new_segment_name("w0")
        names.append(name)
        payload = msgspec.msgpack.encode([accepted(f"{number}-{row}") for row in range(3)])
        data = FILE_HEADER + encode_frame(payload, 0, 3) + encode_footer(3)
        (settings.spool_dir / f"{name}{SEALED}").write_bytes(data)
    table = RawEvents(settings, "tests")
    there = [
        Batch(name, range(3), [accepted(f"{n}-{row}") for row in range(3)]) for n, name in enumerate(names)
    ]
    table.insert(there[:1_000])
    table.insert([Batch(names[1_000], [1], [accepted("1000-1")])])
    table.disconnect()
    with loading(settings):
        wait_until_empty(settings.spool_dir, 60)
    expected = {(f"{n}-{row}", name, row) for n, name in enumerate(names) for row in range(3)}
    found = rows(warehouse)
    assert len(found) == 9_000
    assert set(found) == expected


def test_the_api_tells_what_the_loader_did(
    settings: Settings, warehouse: Client, new_api: Callable[..., Api]
) -> None:
    api = new_api()
    assert "apex_loader_" not in httpx.get(f"{api.url}/metrics").text  # none has run here yet
    spool(settings.spool_dir, [accepted("a"), accepted("b"), accepted("wild", quantity=2**63)])
    for _ in range(2):  # its counters go on over a restart
        spool(settings.spool_dir, [accepted("c")])
        with loading(settings):
            wait_until_empty(settings.spool_dir)
    exposed = httpx.get(f"{api.url}/metrics").text
    figures = dict(line.split(" ") for line in exposed.splitlines() if line.startswith("apex_loader_"))
    assert figures["apex_loader_rows_total"] == "4"
    assert figures["apex_loader_segments_total"] == "3"
    assert figures["apex_loader_dead_letters_total"] == "1"
    assert int(figures["apex_loader_inserts_total"]) >= 2
    assert figures["apex_loader_unreadable_segments"] == "0"
    assert float(figures["apex_loader_seconds_total"]) > 0
    assert 0 <= float(figures["apex_loader_last_success_age_seconds"]) < 30
    (settings.spool_dir / "loader.json").write_text("{ broken")
    assert httpx.get(f"{api.url}/metrics").status_code == 200


def test_the_age_of_the_last_success_grows_while_loading_fails(settings: Settings, warehouse: Client) -> None:
    there = settings.clickhouse_url
    settings.clickhouse_url = f"http://default:x@127.0.0.1:{free_port()}"
    spool(settings.spool_dir, [accepted("a")])
    with loading(settings):
        time.sleep(0.8)
        status = read_status(settings.spool_dir)
        assert status is not None
        assert (status.last_success_at, status.failures >= 1) == (None, True)
        settings.clickhouse_url = there
        wait_until_empty(settings.spool_dir)
    status = read_status(settings.spool_dir)
    assert status is not None
    assert status.last_success_at is not None


def test_a_segment_that_can_not_be_read_is_told_once_counted_and_no_success(
    settings: Settings,
    warehouse: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loader, "_UNREADABLE_PAUSE_SECONDS", 0.1)
    batch_id = spool(settings.spool_dir, [accepted("behind a bad sector")])
    bad, aside = settings.spool_dir / f"{batch_id}{SEALED}", settings.spool_dir / "aside"
    bad.rename(aside)
    bad.mkdir()  # reading it fails, as root too
    spool(settings.spool_dir, [accepted("good")])
    with loading(settings):
        until(lambda: read_status(settings.spool_dir) is not None)
        before = told(settings)
        assert (before.segments, before.unreadable) == (1, 1)
        time.sleep(2 * loader._IDLE_STATUS_SECONDS)
        assert told(settings) == before  # neither a success nor a failure more
        bad.rmdir()
        aside.rename(bad)
        wait_until_empty(settings.spool_dir)
        until(lambda: told(settings).unreadable == 0)
    assert sorted(row[0] for row in rows(warehouse)) == ["behind a bad sector", "good"]
    assert told(settings).last_success_at != before.last_success_at
    assert capsys.readouterr().out.count("segment can't be read") == 1


def told(settings: Settings) -> LoaderStatus:
    status = read_status(settings.spool_dir)
    assert status is not None
    return status


def test_events_sent_to_the_api_land_within_seconds_and_survive_its_graceful_end(
    warehouse: Client,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    account: Account,
    settings: Settings,
) -> None:
    api = new_api(workers=2)
    new_loader()
    with httpx.Client(base_url=api.url, headers=account.bearer) as http:
        for number in range(20):
            assert http.post("/api/usage/track", json=event(event_id=f"evt-{number}")).status_code == 200
        deadline = time.monotonic() + 20
        while len(rows(warehouse)) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        exposed = http.get("/metrics").text
        assert "apex_ingest_events_accepted_total 20\n" in exposed  # of both workers together
        assert http.post("/api/usage/track", json=event(event_id="last")).status_code == 200
    api.stop()
    # SIGTERM sealed the segment at once: nothing is left open for the loader to recover.
    assert not list(settings.spool_dir.glob("*.open"))
    wait_until_empty(settings.spool_dir)
    assert len(rows(warehouse)) == 21


def test_a_loader_process_ends_on_sigterm_and_a_second_one_is_told_in_one_line(
    warehouse: Client,
    new_loader: Callable[..., LoaderProcess],
    process_environment: Callable[..., dict[str, str]],
    settings: Settings,
) -> None:
    first = new_loader()
    deadline = time.monotonic() + 20
    while not (settings.spool_dir / "identity").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = subprocess.run(
        [sys.executable, "-m", "ingest_api.loader"],
        env=process_environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.startswith("error: another loader (process ")
    assert first.process is not None
    process = first.process
    first.stop()
    assert process.returncode == 0
