"""A spool file cut off or altered anywhere loses what was hit and nothing else, and everybody is told."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.settings import Settings
from ingest_api.loader_status import read_status
from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame, scan
from ingest_api.spool.reading import read_segment, recover_abandoned
from ingest_api.spool.segments import OPEN, RESERVED_BYTES, SEALED, new_segment_name
from tests.ingest.conftest import Api
from tests.ingest.loading import loading, rows, wait_until_empty
from tests.ingest.spool_files import accepted

EVENTS = [[accepted("a")], [accepted("b"), accepted("c")], [accepted("d", quantity=-1)]]
_decode = msgspec.msgpack.Decoder(list[AcceptedEvent]).decode


def _frames() -> list[bytes]:
    frames, row = [], 0
    for request in EVENTS:
        frames.append(encode_frame(msgspec.msgpack.encode(request), row, len(request)))
        row += len(request)
    return frames


FRAMES = _frames()
OPEN_BYTES = FILE_HEADER + b"".join(FRAMES)
SEALED_BYTES = OPEN_BYTES + encode_footer(4)
LAST_FRAME = len(OPEN_BYTES) - len(FRAMES[-1])  # where it starts


def write(folder: Path, data: bytes, suffix: str) -> str:
    """A spool file of a worker that is gone; its batch id."""
    folder.mkdir(parents=True, exist_ok=True)
    batch_id = new_segment_name("w0")
    (folder / f"{batch_id}{suffix}").write_bytes(data)
    return batch_id


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def kept_aside(folder: Path) -> dict[str, dict[tuple[int, int], bytes]]:
    """By batch, the pieces kept aside, by where they stood; fails unless each was reported just once."""
    lines = (folder / "damaged" / "report.ndjson").read_text().splitlines()
    pieces: dict[str, dict[tuple[int, int], bytes]] = defaultdict(dict)
    for report in map(json.loads, lines):
        piece = (folder / "damaged" / report["kept_in"]).read_bytes()
        pieces[report["batch_id"]][report["start"], report["end"]] = piece
    assert len(lines) == sum(map(len, pieces.values())) == len(list((folder / "damaged").iterdir())) - 1
    return pieces


def events_read(path: Path) -> list[list[AcceptedEvent]]:
    return [_decode(frame.payload) for frame in read_segment(path).frames]


def test_an_open_segment_cut_anywhere_in_its_last_frame_keeps_what_was_whole(tmp_path: Path) -> None:
    cuts = {write(tmp_path, OPEN_BYTES[:cut], OPEN): cut for cut in range(LAST_FRAME, len(OPEN_BYTES) + 1)}
    assert len(recover_abandoned(tmp_path)) == len(cuts)
    torn = {}
    for batch_id, cut in cuts.items():
        is_whole = cut == len(OPEN_BYTES)
        assert events_read(tmp_path / f"{batch_id}{SEALED}") == (EVENTS if is_whole else EVENTS[:-1])
        if LAST_FRAME < cut < len(OPEN_BYTES):
            piece = OPEN_BYTES[LAST_FRAME:cut].rstrip(b"\0")  # as the room that was reserved behind it
            torn[batch_id] = {(LAST_FRAME, LAST_FRAME + len(piece)): piece}
    # Reading what was recovered reports nothing further.
    assert kept_aside(tmp_path) == torn


@pytest.mark.parametrize("content", [FILE_HEADER, OPEN_BYTES, SEALED_BYTES])
def test_room_that_was_reserved_and_not_written_is_no_damage(content: bytes, tmp_path: Path) -> None:
    batch_id = write(tmp_path, content + bytes(RESERVED_BYTES), OPEN)
    assert len(recover_abandoned(tmp_path)) == 1
    sealed = tmp_path / f"{batch_id}{SEALED}"
    assert events_read(sealed) == (EVENTS if content != FILE_HEADER else [])
    assert sealed.stat().st_size <= len(SEALED_BYTES)
    assert not (tmp_path / "damaged").exists()


def test_a_sealed_segment_cut_anywhere_in_its_tail_keeps_what_was_whole(tmp_path: Path) -> None:
    expected = {}
    for cut in range(LAST_FRAME, len(SEALED_BYTES)):
        batch_id = write(tmp_path, SEALED_BYTES[:cut], SEALED)
        start, whole = (LAST_FRAME, EVENTS[:-1]) if cut < len(OPEN_BYTES) else (len(OPEN_BYTES), EVENTS)
        for _ in range(2):  # as a loader that was killed reads it again
            assert events_read(tmp_path / f"{batch_id}{SEALED}") == whole
        # That the end is missing is told by an empty piece, whatever else is wrong.
        expected[batch_id] = {(start, cut): SEALED_BYTES[start:cut], (cut, cut): b""}
    assert kept_aside(tmp_path) == expected


def test_a_bit_flipped_anywhere_costs_one_frame_at_most() -> None:
    ends = [len(FILE_HEADER)]
    for frame in FRAMES:
        ends.append(ends[-1] + len(frame))
    for position in range(len(SEALED_BYTES)):
        hit = sum(position >= end for end in ends)  # 0 is the header of the file, 4 the footer
        expected = [request for number, request in enumerate(EVENTS, start=1) if number != hit]
        for bit in range(8):
            found = scan(flipped(SEALED_BYTES, position, bit))
            assert [_decode(frame.payload) for frame in found.frames] == expected, (position, bit)
            assert [frame.first_row for frame in found.frames] == [
                row for number, row in enumerate((0, 1, 3), start=1) if number != hit
            ]
            assert any(part.start <= position < part.end for part in found.damage), (position, bit)
            assert found.sealed_rows == (None if hit == 4 else 4)


@pytest.mark.parametrize(("data", "suffix"), [(OPEN_BYTES, OPEN), (SEALED_BYTES, SEALED)])
def test_a_bit_flipped_in_the_tail_is_kept_aside_with_what_is_around_it(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    parts = {}
    for position in range(LAST_FRAME, len(data)):
        altered = flipped(data, position, position % 8)
        batch_id = write(tmp_path, altered, suffix)
        recover_abandoned(tmp_path)
        in_frame = position < len(OPEN_BYTES)
        assert events_read(tmp_path / f"{batch_id}{SEALED}") == (EVENTS[:-1] if in_frame else EVENTS)
        start, end = (LAST_FRAME, len(OPEN_BYTES)) if in_frame else (len(OPEN_BYTES), len(data))
        parts[batch_id] = (start, end), altered[start:end]
    kept = kept_aside(tmp_path)
    assert set(kept) == set(parts)
    assert all(kept[batch_id][where] == piece for batch_id, (where, piece) in parts.items())


def test_the_loader_loads_the_rest_of_any_damaged_file_and_everybody_is_told(
    settings: Settings, warehouse: Client, new_api: Callable[..., Api]
) -> None:
    middle = len(FILE_HEADER) + len(FRAMES[0]) + 30
    expected = {
        write(settings.spool_dir, data, suffix): whole
        for data, suffix, whole in [
            (SEALED_BYTES, SEALED, "abcd"),
            (SEALED_BYTES[: LAST_FRAME + 3], SEALED, "abc"),
            (OPEN_BYTES[:-1], OPEN, "abc"),
            (flipped(SEALED_BYTES, middle, 3), SEALED, "ad"),
            (flipped(SEALED_BYTES, 2, 3), SEALED, "abcd"),
            (b"", SEALED, ""),
            (b"\x00" * 5_000, SEALED, ""),
            (b"\xffAPF" * 1_000, OPEN, ""),
            (SEALED_BYTES + b"what another file left behind", SEALED, "abcd"),
        ]
    }
    with loading(settings):
        wait_until_empty(settings.spool_dir)
    assert sorted((event_id, batch_id) for event_id, batch_id, _ in rows(warehouse)) == sorted(
        (event_id, batch_id) for batch_id, whole in expected.items() for event_id in whole
    )
    status = read_status(settings.spool_dir)
    assert status is not None
    assert status.failures == 0
    damaged = kept_aside(settings.spool_dir)
    assert set(damaged) == set(list(expected)[1:])
    pieces = sum(len(parts) for parts in damaged.values())
    exposed = httpx.get(f"{new_api().url}/metrics").text
    assert f"apex_ingest_damaged_pieces {pieces}\n" in exposed
