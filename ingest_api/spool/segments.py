"""Names of spool segments and the folder they live in.

Belongs here: what a name tells, listing, making names durable. Does not belong here: a segment's bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import uuid_utils

NEW = ".new"
OPEN = ".open"
SEALED = ".seg"
DAMAGED_FOLDER = "damaged"
# What a segment is long at first, filled with zeros behind its content (`writing`); doubled as it grows.
RESERVED_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class SpoolUsage:
    """What waits in the spool.

    Attributes
    ----------
    size : int
        Bytes of all segments; an open one's first reservation is not counted yet.
    oldest_ms : int or None
        When the oldest segment was begun, in milliseconds since 1970-01-01 UTC.
    """

    size: int
    segments: int
    oldest_ms: int | None


def new_segment_name(worker: str) -> str:
    """A name for a segment of `worker`, unique among all hosts; names of one host sort by time."""
    return f"{worker}-{uuid_utils.uuid7()}"


def _identifier(batch_id: str) -> str:
    return batch_id.partition("-")[2]


def begun_at_ms(batch_id: str) -> int | None:
    """When the segment was begun by its host's clock, in milliseconds since 1970; None for a foreign name."""
    try:
        return int(uuid_utils.UUID(_identifier(batch_id)).timestamp)
    except ValueError:
        return None


def list_segments(folder: Path, suffix: str) -> list[Path]:
    """Segments with `suffix`, in the order in which they were begun, whichever worker wrote them."""
    return sorted(folder.glob(f"*{suffix}"), key=lambda path: _identifier(path.stem))


def spool_usage(folder: Path) -> SpoolUsage:
    """Count what waits in `folder`.

    Raises
    ------
    OSError
        If the folder can't be read.
    """
    size = 0
    begun: list[int] = []
    segments = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith((OPEN, SEALED)):
                continue
            try:
                found = entry.stat().st_size
            except FileNotFoundError:
                continue  # sealed or landed since it was listed
            size += found if entry.name.endswith(SEALED) else max(0, found - RESERVED_BYTES)
            segments += 1
            at = begun_at_ms(entry.name.rpartition(".")[0])
            if at is not None:
                begun.append(at)
    return SpoolUsage(size, segments, min(begun, default=None))


def damaged_pieces(folder: Path) -> int:
    """Pieces of segments of `folder` that were set aside and that nobody has removed yet."""
    # The report beside them is one no more than a copy that was never finished.
    return sum(1 for path in folder.joinpath(DAMAGED_FOLDER).glob("*.*-*"))


def sync_folder(folder: Path) -> None:
    """Make creations, renames and removals in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
