"""Reading sealed segments, recovering those that dead workers left open, setting damage aside.

Belongs here: from files to intact frames. Does not belong here: where the rows go (`loader`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from apex_pipelines.platform.logging import get_logger
from ingest_api.spool.frames import Damage, Frame, encode_footer, scan
from ingest_api.spool.segments import DAMAGED_FOLDER, NEW, OPEN, SEALED, list_segments, sync_folder
from ingest_api.spool.writing import write_all

log = get_logger(__name__)

_UNFINISHED_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Segment:
    """A sealed segment as read: its intact frames, in order.

    Attributes
    ----------
    size : int
        Bytes of the file.
    """

    path: Path
    frames: list[Frame]
    size: int

    @property
    def batch_id(self) -> str:
        return self.path.stem

    @property
    def row_count(self) -> int:
        return sum(frame.row_count for frame in self.frames)


def read_segment(path: Path) -> Segment:
    """Read a sealed segment; bytes that prove damaged are copied aside and reported, the rest is returned.

    Raises
    ------
    OSError
        If the file can't be read, or the damage can't be set aside.
    """
    data = path.read_bytes()
    found = scan(data)
    damage = list(found.damage)
    if found.sealed_rows is None:
        damage.append(Damage(len(data), len(data), "the end of the sealed segment is missing"))
    elif found.sealed_rows != found.next_row:
        problem = f"sealed with {found.sealed_rows} rows, {found.next_row} found"
        damage.append(Damage(len(data), len(data), problem))
    if damage:
        _set_aside(path, data, damage)
    return Segment(path, found.frames, len(data))


def recover_abandoned(folder: Path) -> list[Path]:
    """Seal the open segments of workers that are dead, cutting off tails that never became durable.

    One that can't be recovered because the disk is full or failing is reported and left for the next call.

    Returns
    -------
    list of Path
        The segments that are sealed now.
    """
    recovered = []
    for path in list_segments(folder, OPEN):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # sealed since it was listed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                recovered.append(_seal_abandoned(path, descriptor))
        except BlockingIOError:
            pass  # its worker lives
        except OSError as error:
            # Loading goes on without it, which also frees space on a disk that is full.
            log.error("segment can't be recovered yet", batch_id=path.stem, error=str(error))
        finally:
            os.close(descriptor)
    if recovered:
        sync_folder(folder)
    return recovered


def remove_unfinished(folder: Path, now: datetime) -> None:
    """Remove `.new` files left by workers that died while making them: nothing in them was acknowledged.

    Young ones stay, because a living worker may be about to give them their name.
    """
    for path in list_segments(folder, NEW):
        with contextlib.suppress(FileNotFoundError):
            if now.timestamp() - path.stat().st_mtime > _UNFINISHED_SECONDS:
                path.unlink()


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file behind `descriptor`, which its worker may just have sealed."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _seal_abandoned(path: Path, descriptor: int) -> Path:
    data = path.read_bytes()
    found = scan(data, is_open=True)
    tail = found.damage[-1] if found.damage and found.damage[-1].end == found.size else None
    if found.damage:
        _set_aside(path, data, found.damage)
    if found.sealed_rows is None:
        end = tail.start if tail is not None else found.size
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, 0, os.SEEK_END)
        write_all(descriptor, encode_footer(found.next_row))
    else:
        os.ftruncate(descriptor, found.size)
    # What is read here may be in memory only when the worker died: it counts from this sync on.
    os.fsync(descriptor)
    sealed = path.with_suffix(SEALED)
    path.rename(sealed)
    log.warning("recovered a segment that its worker left open", batch_id=sealed.stem, rows=found.next_row)
    return sealed


def _set_aside(path: Path, data: bytes, damage: list[Damage]) -> None:
    """Copy damaged bytes to `damaged/` with a report line for each; repeating it changes nothing."""
    folder = path.parent / DAMAGED_FOLDER
    folder.mkdir(exist_ok=True)
    for part in damage:
        copy = folder / f"{path.stem}.{part.start}-{part.end}"
        if copy.exists():
            continue
        temporary = copy.with_suffix(".writing")
        with temporary.open("wb") as file:
            file.write(data[part.start : part.end])
            file.flush()
            os.fsync(file.fileno())
        report = {
            "batch_id": path.stem, "start": part.start, "end": part.end, "problem": part.problem,
            "kept_in": copy.name,
        }  # fmt: skip
        with (folder / "report.ndjson").open("a") as file:
            file.write(json.dumps(report) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Renamed last: a kill before it repeats the report line rather than losing it.
        temporary.rename(copy)
        log.error("damaged bytes in the spool were set aside", **report)
    sync_folder(folder)
