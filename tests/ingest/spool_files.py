"""Spool files as workers leave them, written and read without one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from apex_pipelines.metering.events import AcceptedEvent
from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame, scan
from ingest_api.spool.segments import SEALED, new_segment_name
from ingest_api.spool.writing import SegmentFile


def spooled(spool_dir: Path) -> list[AcceptedEvent]:
    """All events on disk, in the order of writing."""
    files = sorted([*spool_dir.glob("*.open"), *spool_dir.glob("*.seg")], key=lambda path: path.stem)
    decode = msgspec.msgpack.Decoder(list[AcceptedEvent]).decode
    frames = [frame for path in files for frame in scan(path.read_bytes()).frames]
    return [row for frame in frames for row in decode(frame.payload)]


def accepted(event_id: str, **changes: object) -> AcceptedEvent:
    base = AcceptedEvent(
        "cus_1", event_id, "impressions", 3, 1_780_000_000_123, 1_780_000_000_000_456, "{}", "", ""
    )
    return msgspec.structs.replace(base, **changes)


def spool(folder: Path, *requests: list[AcceptedEvent]) -> str:
    """A sealed segment with one frame for each request; its batch id."""
    folder.mkdir(parents=True, exist_ok=True)
    segment = SegmentFile.create(folder, "w0")
    segment.append([(msgspec.msgpack.encode(request), len(request)) for request in requests])
    segment.seal()
    return segment.batch_id


def write_segment(folder: Path, ids: list[str]) -> None:
    """A sealed segment, as if a worker had written it; not synced, since no power is cut here."""
    payload = msgspec.msgpack.encode([accepted(name) for name in ids])
    data = FILE_HEADER + encode_frame(payload, 0, len(ids)) + encode_footer(len(ids))
    path = folder / f"{new_segment_name('w0')}.new"
    path.write_bytes(data)
    path.rename(path.with_suffix(SEALED))
