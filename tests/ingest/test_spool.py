"""The spool keeps what it acknowledged, tells damage from data, and never mixes the two."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.spool import group_commit
from ingest_api.spool.frames import FILE_HEADER, FRAME_OVERHEAD, Frame, encode_footer, encode_frame, scan
from ingest_api.spool.group_commit import SpoolFull, SpoolLimits, SpoolUnavailable, SpoolWriter
from ingest_api.spool.reading import read_segment, recover_abandoned
from ingest_api.spool.segments import (
    OPEN,
    RESERVED_BYTES,
    SEALED,
    SpoolUsage,
    begun_at_ms,
    list_segments,
    new_segment_name,
    spool_usage,
)
from ingest_api.spool.writing import SegmentFile

PAYLOADS = st.lists(st.tuples(st.binary(max_size=200), st.integers(min_value=1, max_value=50)), max_size=20)


def segment_bytes(payloads: list[tuple[bytes, int]]) -> tuple[bytes, list[Frame]]:
    data, frames, row = FILE_HEADER, [], 0
    for payload, rows in payloads:
        data += encode_frame(payload, row, rows)
        frames.append(Frame(row, rows, payload))
        row += rows
    return data, frames


@given(PAYLOADS)
def test_frames_read_back_as_they_were_written(payloads: list[tuple[bytes, int]]) -> None:
    data, frames = segment_bytes(payloads)
    found = scan(data + encode_footer(sum(rows for _, rows in payloads)))
    assert (found.frames, found.damage) == (frames, [])
    assert found.sealed_rows == found.next_row


@given(PAYLOADS, st.data())
def test_a_cut_off_tail_takes_only_itself_away(
    payloads: list[tuple[bytes, int]], draw: st.DataObject
) -> None:
    data, frames = segment_bytes(payloads)
    cut = draw.draw(st.integers(min_value=0, max_value=len(data)))
    found = scan(data[:cut])
    assert found.frames == frames[: len(found.frames)]
    kept = len(segment_bytes(payloads[: len(found.frames)])[0])
    assert found.sealed_rows is None
    if cut <= len(FILE_HEADER):
        assert found.frames == []
    else:
        assert [(part.start, part.end) for part in found.damage] == ([(kept, cut)] if kept < cut else [])


@given(PAYLOADS.filter(bool), st.data())
def test_a_flipped_bit_costs_one_frame_and_shifts_no_row(
    payloads: list[tuple[bytes, int]], draw: st.DataObject
) -> None:
    data, frames = segment_bytes(payloads)
    position = draw.draw(st.integers(min_value=len(FILE_HEADER), max_value=len(data) - 1))
    broken = bytearray(data)
    broken[position] ^= 1 << draw.draw(st.integers(min_value=0, max_value=7))
    found = scan(bytes(broken))
    assert len(found.damage) >= 1
    end = len(FILE_HEADER)
    hit = 0
    for index, frame in enumerate(frames):
        end += FRAME_OVERHEAD + len(frame.payload)
        if position < end:
            hit = index
            break
    assert found.frames == frames[:hit] + frames[hit + 1 :]


def test_segment_names_sort_by_time_whatever_worker_wrote_them(tmp_path: Path) -> None:
    names = [new_segment_name(worker) for worker in ("w1", "w0", "w10", "w0")]
    for name in reversed(names):
        (tmp_path / f"{name}{SEALED}").touch()
    assert [path.stem for path in list_segments(tmp_path, SEALED)] == names
    assert begun_at_ms("w0-not-a-uuid") is None
    assert begun_at_ms(names[0]) is not None


def test_a_living_workers_segment_is_left_alone_and_a_dead_ones_recovered(tmp_path: Path) -> None:
    living = SegmentFile.create(tmp_path, "w0")
    living.append([(b"alive", 1)])
    dead = SegmentFile.create(tmp_path, "w1")
    dead.append([(b"one", 2), (b"two", 3)])
    torn = encode_frame(b"never acknowledged", 5, 1)[:-3]
    os.write(dead._descriptor, torn)
    os.close(dead._descriptor)  # the kernel frees the lock just so when a process dies

    (recovered,) = recover_abandoned(tmp_path)
    assert recovered.stem == dead.batch_id
    assert recover_abandoned(tmp_path) == []
    segment = read_segment(recovered)
    assert [frame.payload for frame in segment.frames] == [b"one", b"two"]
    assert segment.row_count == 5
    (report,) = (tmp_path / "damaged" / "report.ndjson").read_text().splitlines()
    kept = json.loads(report)
    assert kept["batch_id"] == dead.batch_id
    assert (tmp_path / "damaged" / kept["kept_in"]).read_bytes() == torn

    living.seal()
    assert [frame.payload for frame in read_segment(tmp_path / f"{living.batch_id}{SEALED}").frames] == [
        b"alive"
    ]


def test_a_sealed_segment_that_lost_whole_frames_is_reported(tmp_path: Path) -> None:
    segment = SegmentFile.create(tmp_path, "w0")
    segment.append([(b"one", 1), (b"two", 1)])
    segment.seal()
    path = tmp_path / f"{segment.batch_id}{SEALED}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 2 * FRAME_OVERHEAD - len(b"two")])
    for _ in range(2):  # reading again reports nothing new
        assert [frame.payload for frame in read_segment(path).frames] == [b"one"]
    (report,) = (tmp_path / "damaged" / "report.ndjson").read_text().splitlines()
    assert "end of the sealed segment is missing" in json.loads(report)["problem"]


LIMITS = SpoolLimits(segment_size=1_000_000, segment_age=0.05, spool_size=10_000_000)


def run_writer(
    folder: Path,
    limits: SpoolLimits,
    use: Callable[[SpoolWriter], Awaitable[None]],
    flushes: list[float] | None = None,
) -> None:
    async def main() -> None:
        times: list[float] = [] if flushes is None else flushes
        writer = SpoolWriter(folder, "w0", limits, asyncio.get_running_loop(), times.append)
        try:
            await use(writer)
        finally:
            await asyncio.to_thread(writer.close)

    asyncio.run(main())


def all_payloads(folder: Path) -> list[bytes]:
    recover_abandoned(folder)
    return [frame.payload for path in list_segments(folder, SEALED) for frame in read_segment(path).frames]


def test_requests_that_arrive_together_share_a_flush(tmp_path: Path) -> None:
    flushes: list[float] = []

    async def use(writer: SpoolWriter) -> None:
        await asyncio.gather(*(writer.append(b"%d" % number, 1) for number in range(200)))

    run_writer(tmp_path, LIMITS, use, flushes)
    assert all_payloads(tmp_path) == [b"%d" % number for number in range(200)]
    assert len(flushes) <= 2


def test_segments_are_sealed_by_age_and_by_size(tmp_path: Path) -> None:
    async def use(writer: SpoolWriter) -> None:
        await writer.append(b"old", 1)
        assert len(list_segments(tmp_path, OPEN)) == 1
        while not list_segments(tmp_path, SEALED):
            await asyncio.sleep(0.01)
        await writer.append(b"x" * 2_000_000, 1)
        assert len(list_segments(tmp_path, SEALED)) == 2

    run_writer(tmp_path, LIMITS, use)
    assert spool_usage(tmp_path).segments == 2


def test_a_cancelled_request_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    async def use(writer: SpoolWriter) -> None:
        tasks = [asyncio.create_task(writer.append(b"%d" % number, 1)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, True, False]

    run_writer(tmp_path, LIMITS, use)
    assert {b"0", b"2"} <= set(all_payloads(tmp_path))


def test_a_full_spool_refuses_until_the_loader_has_made_room(tmp_path: Path) -> None:
    limits = SpoolLimits(segment_size=100, segment_age=0.05, spool_size=5_000)

    async def use(writer: SpoolWriter) -> None:
        while not writer.is_full:
            await writer.append(b"x" * 90, 1)
            await asyncio.sleep(0.005)
        for path in list_segments(tmp_path, SEALED):
            path.unlink()
        with pytest.raises(SpoolFull) as refused:
            await writer.append(b"still remembered as full", 1)
        assert refused.value.retry_after > 0
        while writer.is_full:
            await asyncio.sleep(0.01)
        await writer.append(b"room again", 1)

    run_writer(tmp_path, limits, use)
    assert b"room again" in all_payloads(tmp_path)


def test_nobody_waits_for_a_long_spool_to_be_listed_and_the_limit_holds_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = threading.Event()

    def lists_slowly(folder: Path) -> SpoolUsage:
        assert listed.wait(30)
        return spool_usage(folder)

    async def use(writer: SpoolWriter) -> None:
        monkeypatch.setattr(group_commit, "_USAGE_SECONDS", 0.0)
        monkeypatch.setattr(group_commit, "spool_usage", lists_slowly)
        try:
            for _ in range(50):
                await asyncio.wait_for(writer.append(b"x" * 100, 1), 5)
            with pytest.raises(SpoolFull):
                await writer.append(b"x", 1)
        finally:
            listed.set()

    run_writer(tmp_path, SpoolLimits(segment_size=10_000, segment_age=60, spool_size=5_000), use)


def test_a_spool_that_is_full_at_the_start_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "w9-0.seg").write_bytes(b"x" * 5_000)

    async def use(writer: SpoolWriter) -> None:
        with pytest.raises(SpoolFull):
            await writer.append(b"x", 1)

    run_writer(tmp_path, SpoolLimits(segment_size=10_000, segment_age=60, spool_size=5_000), use)


def test_a_write_that_fails_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails what needs a longer one, as a full disk does."""
    acknowledged: list[bytes] = []
    refused: list[bytes] = []

    async def use(writer: SpoolWriter) -> None:
        for number in range(40):
            payload = b"%03d" % number + b"x" * 5_000
            try:
                await writer.append(payload, 1)
                acknowledged.append(payload)
            except SpoolUnavailable:
                refused.append(payload)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (RESERVED_BYTES + 4_000, hard))
    try:
        run_writer(tmp_path, SpoolLimits(4_000_000, 60, 10_000_000), use)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(refused) >= 2
    assert len(acknowledged) >= 30
    # What was refused was cut off, so that nothing torn is left to report either.
    assert all_payloads(tmp_path) == acknowledged
    assert not (tmp_path / "damaged").exists()


def test_a_disk_that_takes_nothing_is_told_now_and_then_and_not_at_each_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(group_commit, "_FAILURE_LINE_SECONDS", 0.5)
    folder = tmp_path / "gone"

    async def use(writer: SpoolWriter) -> None:
        for pause in [0.0] * 20 + [0.6, 0.0]:
            await asyncio.sleep(pause)
            with pytest.raises(SpoolUnavailable):
                await writer.append(b"x", 1)

    run_writer(folder, LIMITS, use)
    told = [line for line in capsys.readouterr().out.splitlines() if "spool write failed" in line]
    assert 2 <= len(told) <= 4
    # What was left out is told by a later line.
    left_out = [int(found[1]) for line in told if (found := re.search(r"left_out=(\d+)", line))]
    assert sum(left_out) >= 20 - len(told)
