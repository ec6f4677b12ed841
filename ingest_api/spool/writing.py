"""Writing one spool segment: append, make durable, seal.

Belongs here: the file and its lock. Does not belong here: who waits for what (`group_commit`), reading.
All functions block; the API calls them in its one flusher thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import tempfile
from pathlib import Path

from ingest_api.spool.frames import FILE_HEADER, encode_footer, encode_frame
from ingest_api.spool.segments import NEW, OPEN, RESERVED_BYTES, SEALED, new_segment_name, sync_folder

_CLOSED = -1
_MAX_AHEAD = 1_048_576


class SegmentFile:
    """An open segment of one worker, locked against the loader for as long as the worker lives.

    Attributes
    ----------
    batch_id : str
        Name of the segment without its suffix; the rows carry it in ClickHouse.
    size : int
        Bytes up to the end of what is durable.
    rows : int
        Durable rows.
    """

    def __init__(self, folder: Path, batch_id: str, descriptor: int) -> None:
        self.batch_id = batch_id
        self.size = len(FILE_HEADER)
        self.rows = 0
        self._folder = folder
        self._descriptor = descriptor
        self._reserved = RESERVED_BYTES

    @classmethod
    def create(cls, folder: Path, worker: str) -> SegmentFile:
        """Create a segment whose name and header are durable.

        It is locked before it gets its `.open` name, so a loader never takes it for a dead worker's.

        Raises
        ------
        OSError
            If the disk is full, read-only or failing; a file without an event may remain.
        """
        batch_id = new_segment_name(worker)
        path = folder / f"{batch_id}{NEW}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_zeros(descriptor, 0, RESERVED_BYTES)
            write_all(descriptor, FILE_HEADER)
            os.fsync(descriptor)
            path.rename(folder / f"{batch_id}{OPEN}")
            sync_folder(folder)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return cls(folder, batch_id, descriptor)

    def append(self, payloads: list[tuple[bytes, int]]) -> None:
        """Write one frame for each payload (its bytes, its rows) and wait until all are on disk.

        Raises
        ------
        OSError
            If writing or syncing failed. Nothing of this call may be acknowledged, and the segment must
            be abandoned: after a failed sync the kernel may claim that pages are clean which never were
            written.
        """
        frames = []
        row = self.rows
        for payload, row_count in payloads:
            frames.append(encode_frame(payload, row, row_count))
            row += row_count
        data = b"".join(frames)
        self._reserve(self.size + len(data))
        write_all(self._descriptor, data)
        sync(self._descriptor)
        self.size += len(data)
        self.rows = row

    def seal(self) -> None:
        """Mark the segment as complete and hand it to the loader.

        Raises
        ------
        OSError
            If that failed; the rows are durable none the less, and the loader recovers them once the
            segment is abandoned.
        """
        footer = encode_footer(self.rows)
        write_all(self._descriptor, footer)
        os.ftruncate(self._descriptor, self.size + len(footer))
        sync(self._descriptor)
        (self._folder / f"{self.batch_id}{OPEN}").rename(self._folder / f"{self.batch_id}{SEALED}")
        # The lock goes only now: whoever gets it on the old name finds that the name is gone.
        self._close()
        sync_folder(self._folder)

    def abandon(self) -> None:
        """Cut off what was not acknowledged, as far as the disk still allows, and leave it to the loader."""
        if self._descriptor == _CLOSED:
            return  # sealed, and only syncing the folder failed
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self.size)
            sync(self._descriptor)
        with contextlib.suppress(OSError):
            self._close()

    def _reserve(self, size: int) -> None:
        """Have at least `size` bytes that are durable, zeros behind the content.

        Writing there makes the file no longer, so a sync has only the bytes themselves to take care of. That
        is cheaper; and it is honest (decision 0012): once a file system has given up its journal, ext4 says
        yes to a sync whose bytes are lost with the new length, or with the mark that its block is in use.
        """
        if size <= self._reserved:
            return
        # As much again as it holds, so that small segments stay small and large ones seldom stop for it.
        wanted = size + min(size, _MAX_AHEAD)
        reserved = math.ceil(wanted / RESERVED_BYTES) * RESERVED_BYTES
        write_zeros(self._descriptor, self._reserved, reserved)
        sync(self._descriptor)
        self._reserved = reserved

    def _close(self) -> None:
        """Close the file once: its number may be another file's a moment later."""
        descriptor, self._descriptor = self._descriptor, _CLOSED
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Write and sync a little in `folder`, and leave nothing behind.

    Raises
    ------
    OSError
        If the disk is full, read-only or failing.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        write_all(probe.fileno(), FILE_HEADER)
        sync(probe.fileno())


def write_zeros(descriptor: int, start: int, end: int) -> None:
    """Fill a file with zeros from one position to another, in blocks that are in use from then on."""
    while start < end:
        start += os.pwrite(descriptor, bytes(min(end - start, _MAX_AHEAD)), start)


def sync(descriptor: int) -> None:
    """Wait until what was written is on disk; on macOS another call is needed to pass the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a disk that fills up writes a part first and fails on the next call."""
    written = os.write(descriptor, data)
    while written < len(data):
        data = data[written:]
        written = os.write(descriptor, data)
